"""Tokens a second of `lancet eval` with threads that spin and that sleep while they wait, alone and two at once.

Run in the environment of requirements-optimum.txt (tools/real/README.md):
  python tools/bench/spinning.py [--lancet target/release/lancet]
6 minutes on two cores; nothing else should run. Prints the rate of each process.
"""

import pathlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "real"))
from cli import Lancet, parser  # noqa: E402


def rate(lancet: Lancet, args, spin: str) -> int:
    """Tokens a second of answers to 48 prompts, 16 of each class."""
    split = ("--n-train", "136", "--n-val", "48", "--n-test", "16")
    run = lancet.run("eval", args.model, "--variant", args.variant, "--spin", spin, "--max-new-tokens", "32", *split,
                     "--wrapped-prompts", "0", "--no-cost", "--refusal-tokens", args.refusal_tokens or "I")
    return int(re.search(r"^answers: \d+ tokens, (\d+) tokens/s$", run.messages, re.MULTILINE).group(1))


def main() -> None:
    args = parser(__doc__).parse_args()
    lancet = Lancet(args)
    for processes in (1, 2):
        for spin in ("on", "off"):
            with ThreadPoolExecutor(processes) as pool:
                rates = list(pool.map(lambda _: rate(lancet, args, spin), range(processes)))
            print(f"{processes} at once, spin {spin}: {', '.join(map(str, rates))} tokens/s", flush=True)


if __name__ == "__main__":
    main()
