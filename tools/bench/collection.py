"""Seconds of filter and mean activations: `lancet collect` against the published procedure in PyTorch.

The same model and the same 384 train prompts (128 of each class), with the refusal tokens given. Lancet's seconds are
those of the whole command, with loading; PyTorch's are those of the two passes alone (tools/real/published.py).

Run in the environment of requirements-optimum.txt (tools/real/README.md):
  python tools/bench/collection.py [--lancet target/release/lancet] [--prompts DIR] [--rounds 3]
2 minutes a round on two idle cores. Prints both, best round of each, and the ratio.
"""

import json
import pathlib
import subprocess
import sys

REAL_TOOLS = pathlib.Path(__file__).resolve().parent.parent / "real"
sys.path.insert(0, str(REAL_TOOLS))
from cli import Lancet, parser  # noqa: E402


def published(args, activations: pathlib.Path) -> float:
    """Seconds of filter and means together."""
    out = args.work / "collection"
    subprocess.run([sys.executable, REAL_TOOLS / "published.py", args.torch_model, "--activations", activations,
                    "-o", out, "--only", "collect"], check=True, stdout=sys.stderr)
    return sum(json.loads(out.with_name(f"{out.name}.json").read_text())["seconds"].values())


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.set_defaults(refusal_tokens="I")
    args = arguments.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    activations = args.work / "collection.safetensors"
    ours, theirs = [], []
    for turn in range(args.rounds):
        ours.append(Lancet(args).collect(args, activations).result["seconds"])
        theirs.append(published(args, activations))
        print(f"round {turn + 1}: Lancet {ours[-1]:.1f} s, PyTorch {theirs[-1]:.1f} s", flush=True)
    print(f"Lancet {min(ours):.1f} s, PyTorch {min(theirs):.1f} s: {min(theirs) / min(ours):.2f} times as fast")


if __name__ == "__main__":
    main()
