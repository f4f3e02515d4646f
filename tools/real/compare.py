"""Lancet against the published procedure in PyTorch, on the same model and prompts.

Runs `lancet collect`, published.py, and `lancet select --paper --exhaustive` for lambda 1, 0.5 and 0, and checks that
  - the filter keeps the same prompts,
  - the chosen directions have a cosine of at least 0.9999,
  - the scores of all candidates agree (the largest difference is printed, and may be 0.01 at most),
  - the same position and layer are chosen.
Exit code 1 where not.

Run in the environment of requirements-optimum.txt:
  python tools/real/compare.py [--lancet target/release/lancet] [--prompts DIR] [--refusal-tokens I]
3 hours on two idle cores, nearly all of it published.py. `--published OUT` takes a finished run of it (with the
`--activations` it was given) instead; `--lambda` and `--candidates N` shorten both sides: with N candidates only their
scores are compared.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
from cli import Lancet, parser
from safetensors import safe_open

HERE = pathlib.Path(__file__).resolve().parent
MIN_COSINE, MAX_DIFFERENCE = 0.9999, 0.01
SCORES = ("refusal_score", "harmful_refusal_score", "kl")


def kept(activations: pathlib.Path) -> dict[str, list[int]]:
    """The train prompts that Lancet kept, by class, in the order of published.py."""
    with safe_open(activations, "np") as file:
        harmful, pseudo, harmless = json.loads(file.metadata()["lancet.activations"])["scores"]
    return {"harmful": [at for at, score in enumerate(harmful) if score > 0],
            "pseudo_harmful": [at for at, score in enumerate(pseudo) if score > 0],
            "harmless": [at for at, score in enumerate(harmless) if score < 0]}


def largest_difference(activations: pathlib.Path, arrays) -> float:
    """Of the means, as a share of the norm of the mean it is in."""
    with safe_open(activations, "np") as file:
        gaps = [np.linalg.norm(file.get_tensor(name) - arrays[name], axis=-1) / np.linalg.norm(arrays[name], axis=-1)
                for name in file.keys()]
    return max(float(gap.max()) for gap in gaps)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--activations", type=pathlib.Path, help="what `lancet collect` wrote")
    arguments.add_argument("--published", type=pathlib.Path, metavar="OUT", help="OUT of published.py")
    arguments.add_argument("--lambda", dest="strengths", type=lambda text: text.split(","), default=["1", "0.5", "0"])
    arguments.add_argument("--candidates", type=int, metavar="N")
    args = arguments.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    lancet = Lancet(args)
    activations = args.activations or args.work / "activations.safetensors"
    if not args.activations:
        print(f"lancet collect: {lancet.collect(args, activations).seconds:.1f} s", flush=True)
    out = args.published or args.work / "published"
    if not args.published:
        count = ["--candidates", str(args.candidates)] if args.candidates else []
        subprocess.run([sys.executable, HERE / "published.py", args.torch_model, "--activations", activations,
                        "-o", out, "--lambda", ",".join(args.strengths), *count], check=True)
    published = json.loads(out.with_name(f"{out.name}.json").read_text())
    arrays = np.load(out.with_name(f"{out.name}.npz"))
    wrong = []

    def say(good: bool, text: str) -> None:
        print(f"{'ok   ' if good else 'WRONG'} {text}", flush=True)
        wrong.extend([] if good else [text])

    ours = kept(activations)
    say(ours == published["kept"], f"kept prompts: {', '.join(f'{len(at)} {name}' for name, at in ours.items())}")
    print(f"      means: at most {largest_difference(activations, arrays):.1e} of their norm apart")
    for strength in args.strengths:
        file = args.work / f"direction-{strength}.safetensors"
        run = lancet.select(args, activations, file, float(strength), "--paper", "--exhaustive")
        print(f"lambda {strength}: lancet select {run.seconds:.1f} s, PyTorch "
              f"{published['lambda'][strength]['seconds']['candidates']:.1f} s", flush=True)
        theirs = {(c["position"], c["layer"]): c for c in published["lambda"][strength]["candidates"]}
        scored = {(c["position"], c["layer"]): c for c in run.result["candidates"] if c["kl"] is not None}
        both = theirs.keys() & scored.keys()
        gap = max(abs(theirs[place][score] - scored[place][score]) for place in both for score in SCORES)
        say(gap <= MAX_DIFFERENCE and both == theirs.keys(),
            f"scores of {len(both)} of {len(theirs)} candidates: at most {gap:.1e} apart")
        if "selected" in published["lambda"][strength]:
            place = {key: run.result["selected"][key] for key in ("position", "layer")}
            say(place == published["lambda"][strength]["selected"],
                f"chosen: {place}, PyTorch {published['lambda'][strength]['selected']}")
            with safe_open(file, "np") as direction:
                vector = direction.get_tensor("direction")
            other = arrays[f"direction.{strength}"]
            cosine = float(vector @ other / np.linalg.norm(vector) / np.linalg.norm(other))
            say(cosine >= MIN_COSINE, f"directions: cosine {cosine:.8f}")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
