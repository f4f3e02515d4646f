"""Seconds of the selection: `lancet select` in its three ways against the published procedure in PyTorch.

The same model, the same activations, one lambda, the same 96 validation prompts. Lancet's seconds are those of the whole
command, with loading. PyTorch (tools/real/published.py) scores `--candidates N` candidates on all prompts, evenly spread,
and its seconds are those of the candidates alone, extrapolated to all that have a direction.

  --paper              the published rules; what cannot change the choice is not run     at least 4 times as fast
  (default)            with the guard, and candidates that are clearly behind wait       at least 10 times as fast
  --paper --exhaustive every candidate on every prompt                                   (`--exhaustive`; no limit)

Prints each with its choice, its prompt runs, and the ratio beside its limit. Exit code 1 where one is not met, or where
`--paper` and `--paper --exhaustive` do not choose the same.

Run in the environment of requirements-optimum.txt (tools/real/README.md):
  python tools/bench/selection.py [--lancet target/release/lancet] [--candidates 6] [--activations ACTS] [--exhaustive]
"""

import json
import pathlib
import subprocess
import sys

REAL_TOOLS = pathlib.Path(__file__).resolve().parent.parent / "real"
sys.path.insert(0, str(REAL_TOOLS))
from cli import Lancet, parser  # noqa: E402


def published(args, activations: pathlib.Path) -> float:
    """Seconds a candidate."""
    out = args.work / "selection"
    subprocess.run([sys.executable, REAL_TOOLS / "published.py", args.torch_model, "--activations", activations,
                    "-o", out, "--lambda", args.strength, "--candidates", str(args.candidates)], check=True,
                   stdout=sys.stderr)
    found = json.loads(out.with_name(f"{out.name}.json").read_text())
    return found["lambda"][args.strength]["seconds"]["each"]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--activations", type=pathlib.Path, help="what `lancet collect` wrote")
    arguments.add_argument("--lambda", dest="strength", default="1")
    arguments.add_argument("--candidates", type=int, default=6, metavar="N")
    arguments.add_argument("--exhaustive", action="store_true", help="run `--paper --exhaustive` too")
    arguments.set_defaults(refusal_tokens="I")
    args = arguments.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    lancet = Lancet(args)
    activations = args.activations or args.work / "selection.safetensors"
    if not args.activations:
        lancet.collect(args, activations)
    each = published(args, activations)
    missed, chosen = [], {}
    ways = [(("--paper",), 4.0), ((), 10.0), *([(("--paper", "--exhaustive"), None)] if args.exhaustive else [])]
    for flags, limit in ways:
        name = " ".join(flags) or "default"
        run = lancet.select(args, activations, args.work / "selection-direction.safetensors", float(args.strength), *flags)
        candidates = run.result["candidates"]
        count = sum((c["discarded"] or {}).get("kind") != "no_direction" for c in candidates)
        runs = sum(sum(c["prompts"].values()) for c in candidates)
        chosen[name] = tuple(run.result["selected"][key] for key in ("position", "layer"))
        ratio = each * count / run.seconds
        bound = f", limit {limit:g}" if limit else ""
        print(f"{name}: {run.seconds:.0f} s, {runs} prompt runs, chosen {chosen[name]}; PyTorch {each:.2f} s a candidate, "
              f"{each * count:.0f} s for {count}: {ratio:.1f} times as fast{bound}", flush=True)
        missed += [name] if limit and ratio < limit else []
    if chosen.get("--paper --exhaustive", chosen["--paper"]) != chosen["--paper"]:
        missed.append("the choice")
    if missed:
        raise SystemExit(f"not met: {', '.join(missed)}")


if __name__ == "__main__":
    main()
