"""Refusal before and after on prompt sets that nothing was fitted on: XSTest's safe prompts and their unsafe contrasts, and
OKTest beside JailbreakBench.

Runs `lancet eval` on the model and on what `lancet run` made of it, with the same greedy answers, and prints Markdown: how
many of each set are refused before and after, with 95 % intervals.

Run with any Python 3.11:
  python tools/real/unseen.py OUT --data DIR [--model MODEL] [--variant onnx/model.onnx] [--lancet target/release/lancet]
OUT is the folder that `lancet run` wrote; DIR holds the published files `xstest_v2_prompts.csv`, `oktest_100.json`,
`jailbreakbench.json` and `harmless_test.json`.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
REAL = ROOT / "target" / "real"


def instructions(path: pathlib.Path) -> list[str]:
    return [row["instruction"] for row in json.loads(path.read_text())]


def sets(data: pathlib.Path) -> dict[str, tuple[list[str], list[str]]]:
    """By name: prompts that are to be answered, prompts that are to be refused."""
    with (data / "xstest_v2_prompts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    unsafe = [row["prompt"] for row in rows if row["type"].startswith("contrast_")]
    safe = [row["prompt"] for row in rows if not row["type"].startswith("contrast_")]
    return {
        "XSTest": (safe, unsafe),
        "OKTest, JailbreakBench": (instructions(data / "oktest_100.json"), instructions(data / "jailbreakbench.json")),
    }


def folder(at: pathlib.Path, safe: list[str], unsafe: list[str], harmless: list[str]) -> None:
    """A folder of prompts whose test split is all of them. Train and validation prompts are made up; nothing runs them."""
    for name, prompts in (("pseudo_harmful", safe), ("harmful", unsafe), ("harmless", harmless)):
        for split, texts in (("train", [f"{name} train"]), ("val", [f"{name} val"]), ("test", prompts)):
            (at / f"{name}_{split}.json").write_text(json.dumps([{"instruction": text.strip()} for text in texts]))


def measured(args: argparse.Namespace, model: pathlib.Path, prompts: pathlib.Path) -> dict:
    command = [args.lancet, "eval", model, "--variant", args.variant, "--prompts", prompts, "--n-test", 1000,
               "--n-train", 1, "--n-val", 1, "--wrapped-prompts", 0, "--no-cost", "--kl-positions", 1,
               "--refusal-tokens", args.refusal_tokens, "--json"]
    command += ["--ort-lib", args.ort_lib] if args.ort_lib else []
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["variants"][0]["eval"]["classes"]


def cell(result: dict) -> str:
    interval = result["refusal_interval"]
    return (f"{result['refused']} of {result['total']}, {100 * result['refusal_rate']:.1f} % "
            f"[{100 * interval['low']:.0f}, {100 * interval['high']:.0f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=REAL / "onnx-community")
    parser.add_argument("--variant", default="onnx/model.onnx")
    parser.add_argument("--lancet", type=pathlib.Path, default=ROOT / "target" / "release" / "lancet")
    parser.add_argument("--ort-lib", type=pathlib.Path)
    parser.add_argument("--refusal-tokens", default="I")
    args = parser.parse_args()
    harmless = instructions(args.data / "harmless_test.json")[:8]
    print("| set | to be | before | after |\n|---|---|---|---|")
    for name, (safe, unsafe) in sets(args.data).items():
        with tempfile.TemporaryDirectory() as place:
            folder(pathlib.Path(place), safe, unsafe, harmless)
            before, after = (measured(args, model, pathlib.Path(place)) for model in (args.model, args.out))
        for key, what in (("pseudo_harmful", "answered"), ("harmful", "refused")):
            print(f"| {name} | {what} | {cell(before[key])} | {cell(after[key])} |")


if __name__ == "__main__":
    main()
