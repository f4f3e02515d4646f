"""Prints the tables of docs/sizing.md: time and memory of `lancet run` for models of 1 to 70 billion parameters, computed
from constants that were measured.

  python tools/bench/sizing.py

The constants stand below with the command that measured each. Nothing is run.
"""

from dataclasses import dataclass

# Prompts of the three classes in the three splits where there are enough of them (the published sizes), tokens of a prompt
# behind the template's beginning, tokens of that beginning.
TRAIN, VALIDATION, TEST, TOKENS, BEGINNING = 3 * 128, 3 * 32, 3 * 128, 22, 24
# Harmful test prompts inside the jailbreak wrappers, tokens of such a prompt, new tokens of an answer, answers before and after.
WRAPPED, WRAPPED_TOKENS, ANSWER, TWICE = 16 * 13, 90, 128, 2
# Prompts of the guard sets, tokens of such a prompt in the mean, new tokens of an answer.
GUARD, GUARD_TOKENS, GUARD_ANSWER = 48 * 2 + 40 + 3 * 24, 80, 64
# Prompt runs of the selection a candidate (tools/bench/selection.py: 3280 of 174), positions of the template's end.
RUNS, POSITIONS = 3280 / 174, 6


@dataclass
class Machine:
    """What a machine was measured, or is assumed, to do."""

    name: str
    # 1e9 operations a second on prompts: 2 a weight and token
    prompts: float
    # the same on answers, 16 at a time
    answers: float
    # bytes a second of a bake, all included
    bake: float


# collection.py: 384 prompts in 15.3 s less 2.5 s of loading; generation.py: 150 tokens a second; bake.py: 1752 MB in 2.3 s
CPU = Machine("2 cores, measured", 384 * (TOKENS + 1) * 2 * 0.1345 / 12.8, 150 * 2 * 0.1345, 0.75e9)
MACHINES = [CPU, Machine("32 cores, if all scales with them", 16 * CPU.prompts, 16 * CPU.answers, 0.75e9)]
# billions of parameters, layers, width, key-value heads times their width
MODELS = {"1B": (1.24, 16, 2048, 512), "3B": (3.2, 28, 3072, 1024), "8B": (8.0, 32, 4096, 1024),
          "14B": (14.7, 40, 5120, 1024), "32B": (32.8, 64, 5120, 1024), "70B": (70.6, 80, 8192, 1024)}


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def times(machine: Machine, billions: float, layers: int) -> dict[str, float]:
    """Seconds of each stage."""
    token = 2 * billions  # 1e9 operations
    candidates = POSITIONS * layers
    prompts = lambda count, tokens: count * tokens * token / machine.prompts  # noqa: E731
    selection = prompts(RUNS * candidates, TOKENS) + prompts(candidates, BEGINNING)
    asked = TEST * TOKENS + WRAPPED * WRAPPED_TOKENS + GUARD * GUARD_TOKENS
    written = (TEST + WRAPPED) * ANSWER + GUARD * GUARD_ANSWER
    answers = TWICE * (prompts(1, asked) + written * token / machine.answers)
    return {"collect": prompts(TRAIN, TOKENS), "select": selection, "answers": answers,
            "bake": billions * 1e9 * 0.6 / machine.bake}


def main() -> None:
    for machine in MACHINES:
        print(f"\n{machine.name}: {machine.prompts:.0f}e9 operations a second on prompts, {machine.answers:.0f}e9 on "
              "answers\n")
        print("| model | collect | select | answers, before and after | bake, 4 bits | in all |\n|---|---|---|---|---|---|")
        for name, (billions, layers, _, _) in MODELS.items():
            stages = times(machine, billions, layers)
            print(f"| {name} | " + " | ".join(map(duration, [*stages.values(), sum(stages.values())])) + " |")
    print("\n| model | file, float16 | file, 4 bits | KV cache of 16 rows of 200 tokens, float16 | memory of `bake` |\n"
          "|---|---|---|---|---|")
    for name, (billions, layers, _, heads) in MODELS.items():
        cache = 16 * 200 * layers * 2 * heads * 2
        print(f"| {name} | {2 * billions:.0f} GB | {0.6 * billions:.1f} GB | {cache / 1e9:.2f} GB | below 64 MB |")


if __name__ == "__main__":
    main()
