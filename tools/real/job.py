"""The whole job on the real model: `lancet run` on the folder with all its variants, as a user would, and what came of it.

Runs the job once with the bundled prompts and, with `--prompts DIR`, once with those. Writes for each run the report
(`report.html`, `.json`, `.md`) into `--work`, and prints Markdown: refusals of every variant before and after, plain and
inside wrappers, with 95 % intervals; what the guard said; the seconds of every stage and the largest resident memory; some
answers before and after. A run that the guard refuses (exit code 3) publishes nothing and is shown like the others.

Run with any Python 3.11:
  python tools/real/job.py [--lancet target/release/lancet] [--prompts DIR] [--only 'onnx/model*.onnx'] [-- OPTIONS OF RUN]
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
REAL = ROOT / "target" / "real"
CLASSES = {"pseudo_harmful": "pseudo-harmful", "harmful": "harmful", "harmless": "harmless"}
DONE, GUARDED = 0, 3


def run(args: argparse.Namespace, name: str, prompts: pathlib.Path | None) -> tuple[dict, dict[str, str], int]:
    """One `lancet run`: its result, its wall-clock seconds and largest resident memory in words, its exit code."""
    out, report = args.work / name, args.work / f"{name}.html"
    shutil.rmtree(out, ignore_errors=True)
    for old in args.work.glob(f"{name}.*"):
        old.unlink()
    command = [args.lancet, "run", args.model, "-o", out, "--report", report, "--variant", args.variant, "--json"]
    command += ["--prompts", prompts] if prompts else []
    command += ["--ort-lib", args.ort_lib] if args.ort_lib else []
    command += [flag for pattern in args.only for flag in ("--only", pattern)]
    start = time.perf_counter()
    with subprocess.Popen([*map(str, command), *args.options], stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (DONE, GUARDED):
        raise SystemExit(f"lancet run ended with {process.returncode}")
    taken = {"the whole command": f"{time.perf_counter() - start:.1f}", "peak memory, GB": f"{used.ru_maxrss * 1024 / 1e9:.2f}"}
    return json.loads(printed), taken, process.returncode


def rate(result: dict | None) -> str:
    """Refused, in per cent, with its interval."""
    if not result or not result["total"]:
        return "-"
    interval = result["refusal_interval"]
    bounds = f" [{100 * interval['low']:.0f}, {100 * interval['high']:.0f}]" if interval else ""
    return f"{100 * result['refusal_rate']:.1f}{bounds}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def refusals(variants: list[dict]) -> str:
    rows = []
    for variant in variants:
        evaluated = variant["eval"]
        for key, word in CLASSES.items():
            before, after = evaluated["before"][key], evaluated["after"][key]
            rows.append([f"`{variant['model']}`", f"plain, {word}", str(before["total"]), rate(before), rate(after)])
        for condition in evaluated["conditions"]:
            name = condition["condition"].get("wrapper") or condition["condition"]["kind"]
            for row in condition["rows"]:
                rows.append([f"`{variant['model']}`", f"{name}, {CLASSES[row['class']]}", str(row["before"]["total"]),
                             rate(row["before"]), rate(row["after"])])
    return table(["variant", "prompts", "n", "refused before, %", "after, %"], rows)


def tried(search: dict) -> str:
    """The settings on validation prompts."""
    rows = []
    for at, row in enumerate(search["rows"]):
        setting = " ".join(str(value) for value in row["setting"].values() if value is not None)
        refused = [f"{row['classes'][key]['refused']} of {row['classes'][key]['total']}" for key in ("pseudo_harmful", "harmful")]
        lost = f"{row['lost']['lost']} of {row['lost']['total']}" if row["lost"] else ""
        why = "; ".join((row["guard"] or {"reasons": []})["reasons"]) or row["failure"] or ""
        rows.append([setting, *refused, lost, "taken" if at == search["chosen"] else why])
    return table(["setting", "pseudo-harmful refused", "harmful refused", "lost by score", ""], rows)


def verdicts(variants: list[dict]) -> str:
    rows = []
    for variant in variants:
        guard = variant["guard"]
        failed = "; ".join(check["words"] for check in guard["checks"] if not check["passed"]) or "-"
        rows.append([f"`{variant['model']}`", "passed" if guard["passed"] else "refused", failed,
                     "yes" if variant["verify"]["passed"] else "no"])
    return table(["variant", "guard", "what it refused for", "verified"], rows)


def answers(variant: dict, count: int) -> str:
    """Pseudo-harmful prompts whose answer is no refusal any more, and harmful ones."""
    rows = [row for row in variant["eval"]["answers"] if row["condition"]["kind"] == "plain"]
    freed = [row for row in rows if row["class"] == "pseudo_harmful" and row["refused_before"] and not row["refused_after"]]
    harmful = [row for row in rows if row["class"] == "harmful"]
    short = lambda text: " ".join(text.split())[:160].replace("|", "\\|")  # noqa: E731
    return table(["class", "prompt", "before", "after"],
                 [[CLASSES[row["class"]], short(row["prompt"]), short(row["before"]), short(row["after"])]
                  for row in freed[:count] + harmful[:count]])


def describe(name: str, result: dict, taken: dict[str, str], code: int) -> str:
    shared, variants = result["shared"], result["variants"]
    search = shared.get("search") or {"rows": [], "chosen": None}
    stages = table(["stage", "seconds"], [[stage, f"{value:.1f}"] for stage, value in shared["seconds"].items()]
                   + [[what, value] for what, value in taken.items()])
    return f"""### {name}

Exit code {code}. {search.get('refusal') or ''}

{tried(search)}

{refusals(variants)}

{verdicts(variants)}

{stages}

{answers(variants[0], 3) if variants else ''}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lancet", type=pathlib.Path, default=ROOT / "target" / "release" / "lancet")
    parser.add_argument("--ort-lib", type=pathlib.Path, help="ONNX Runtime's library, if not the one that Lancet finds")
    parser.add_argument("--model", type=pathlib.Path, default=REAL / "onnx-community")
    parser.add_argument("--variant", default="onnx/model.onnx", help="which file gives the direction")
    parser.add_argument("--only", action="append", default=[], metavar="GLOB", help="which files are baked; all if not given")
    parser.add_argument("--prompts", type=pathlib.Path, metavar="DIR", help="a second run with these prompts")
    parser.add_argument("--no-bundled", action="store_true", help="leave the run with the bundled prompts out")
    parser.add_argument("--work", type=pathlib.Path, default=REAL / "runs")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="further options of `lancet run`, behind --")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sets = [*([] if args.no_bundled else [("bundled", None)]), *([("published", args.prompts)] if args.prompts else [])]
    for name, prompts in sets:
        print(describe(name, *run(args, name, prompts)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
