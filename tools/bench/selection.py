"""Seconds a candidate of the selection: `lancet select --paper` against the published procedure in PyTorch.

The same model, the same candidates at one lambda, the same 96 validation prompts. Lancet scores all candidates, and its
seconds are those of the whole command, with loading; PyTorch (tools/real/published.py) scores `--candidates N` of them,
evenly spread, and its seconds are those of the candidates alone, extrapolated to all.

Run in the environment of requirements-optimum.txt (tools/real/README.md):
  python tools/bench/selection.py [--lancet target/release/lancet] [--candidates 6] [--activations ACTS]
25 minutes on two idle cores. `--activations` saves collecting them.
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
    arguments.set_defaults(refusal_tokens="I")
    args = arguments.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    lancet = Lancet(args)
    activations = args.activations or args.work / "selection.safetensors"
    if not args.activations:
        lancet.collect(args, activations)
    run = lancet.select(args, activations, args.work / "selection-direction.safetensors", float(args.strength))
    count = sum(c["kl"] is not None for c in run.result["candidates"])
    theirs = published(args, activations)
    print(f"Lancet: {count} candidates in {run.seconds:.0f} s, {run.seconds / count:.2f} s each")
    print(f"PyTorch: {theirs:.2f} s each ({args.candidates} measured), {theirs * count:.0f} s for all")
    print(f"ratio: {theirs * count / run.seconds:.2f} times as fast")


if __name__ == "__main__":
    main()
