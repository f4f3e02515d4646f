"""Runs the `lancet` binary for the comparisons and benchmarks."""

import argparse
import json
import pathlib
import subprocess
import time
from dataclasses import dataclass

from common import REAL, ROOT


@dataclass
class Run:
    """What one call gave."""

    result: dict
    messages: str
    seconds: float


class Lancet:
    """The binary and how it finds ONNX Runtime."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.binary, self.library = args.lancet, args.ort_lib

    def run(self, command: str, *arguments: str | pathlib.Path) -> Run:
        """`lancet COMMAND ... --json`; a failure ends the script with what Lancet said."""
        library = ["--ort-lib", self.library] if self.library else []
        start = time.perf_counter()
        done = subprocess.run([self.binary, command, *map(str, arguments), *library, "--json"], capture_output=True,
                              text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"lancet {command} ended with {done.returncode}:\n{done.stderr}")
        return Run(json.loads(done.stdout), done.stderr, seconds)

    def collect(self, args: argparse.Namespace, output: pathlib.Path) -> Run:
        """`lancet collect` on the model and the prompts of the arguments."""
        prompts = ["--prompts", args.prompts] if args.prompts else []
        tokens = ["--refusal-tokens", args.refusal_tokens] if args.refusal_tokens else []
        output.unlink(missing_ok=True)
        return self.run("collect", args.model, "--variant", args.variant, "-o", output, *prompts, *tokens)

    def select(self, args: argparse.Namespace, activations: pathlib.Path, output: pathlib.Path, strength: float,
               *flags: str) -> Run:
        """`lancet select` for one lambda."""
        output.unlink(missing_ok=True)
        return self.run("select", args.model, "--variant", args.variant, "--activations", activations, "-o", output,
                        "--lambda", f"{strength:g}", *flags)


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that all of these scripts take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lancet", type=pathlib.Path, default=ROOT / "target" / "release" / "lancet")
    parser.add_argument("--ort-lib", type=pathlib.Path, help="ONNX Runtime's library, if not the one that Lancet finds")
    parser.add_argument("--model", type=pathlib.Path, default=REAL / "onnx-community", help="what Lancet runs")
    parser.add_argument("--variant", default="onnx/model.onnx", help="which of its files")
    parser.add_argument("--torch-model", type=pathlib.Path, default=REAL / "tuned", help="what PyTorch runs")
    parser.add_argument("--prompts", type=pathlib.Path, metavar="DIR", help="for Lancet; the bundled ones if not given")
    parser.add_argument("--refusal-tokens", help="for Lancet; automatic if not given")
    parser.add_argument("--work", type=pathlib.Path, default=REAL / "runs", help="for what both write")
    return parser
