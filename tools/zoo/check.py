"""onnx.checker and ONNX Runtime's Python API on edited models: a second opinion that shares no code with Lancet.

    python tools/zoo/check.py --lancet target/release/lancet [--only arch,arch]

Bakes every fixture of the zoo by its reference direction, has onnx.checker look at what was written wherever it accepts
the export itself, and compares the logits with PyTorch's hooked ones. Needs onnx, onnxruntime, numpy and safetensors.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
from measure import ROOT, feed
from safetensors.numpy import load_file, save_file

# float16 and bfloat16 graphs round every operation; quantised ones differ from PyTorch's weights anyway.
BOUNDS = {"float32": 2e-4, "float16": 2e-2}


def accepted(path: pathlib.Path) -> str | None:
    """None if onnx.checker accepts a model, else its first line of complaint."""
    try:
        onnx.checker.check_model(str(path))
        return None
    except Exception as error:
        return str(error).strip().splitlines()[0][:160]


def logits(path: pathlib.Path, fixture: pathlib.Path, ids: np.ndarray) -> np.ndarray:
    """The model's logits; a sliding cache that refuses an empty past gets room, one row at a time where a batch fails."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = "logits" if "logits" in names else names[0]
    genai = fixture / "genai_config.json"
    head = json.loads(genai.read_text())["model"]["decoder"]["head_size"] if genai.exists() else None
    attempts = ((ids,), 0), ((ids,), 64), (tuple(row[None] for row in ids), 0)
    for number, (parts, past) in enumerate(attempts):
        try:
            return np.concatenate([session.run([wanted], feed(session, part, past, head))[0] for part in parts])
        except Exception:
            if number + 1 == len(attempts):
                raise
    raise AssertionError("the last attempt returns or raises")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lancet", type=pathlib.Path, required=True)
    parser.add_argument("--zoo", type=pathlib.Path, default=ROOT / "fixtures" / "zoo")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    only = set(filter(None, args.only.split(",")))
    failures, checked, unchecked, compared = [], 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        work = pathlib.Path(scratch)
        for index in sorted((args.zoo / "index").glob("*.json")):
            for entry in json.loads(index.read_text()):
                if entry["model"] is None or (only and entry["arch"] not in only):
                    continue
                name = f"{entry['arch']}/{entry['exporter']}"
                model = args.zoo / entry["model"]
                reference = load_file(args.zoo / entry["arch"] / "reference.safetensors")
                direction, out = work / "direction.safetensors", work / "out"
                save_file({"direction": reference["direction"]}, direction)
                shutil.rmtree(out, ignore_errors=True)
                command = [args.lancet, "bake", model, "--direction", direction, "--output", out, "--quiet"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    failures.append(f"{name}: {done.stderr.strip().splitlines()[0]}")
                    continue
                for base in sorted(model.parent.glob("*.onnx")):
                    written = out / base.name
                    if accepted(base):
                        unchecked += 1  # the export itself is outside the specification
                    elif complaint := accepted(written):
                        failures.append(f"{name}: onnx.checker: {complaint}")
                    else:
                        checked += 1
                bound = BOUNDS.get(entry["dtype"])
                if entry.get("run_error") or bound is None or entry["exporter"].endswith(("int4", "split")):
                    continue
                found = logits(out / model.name, model.parent, reference["input_ids"]).astype(np.float64)
                error = np.abs(found - reference["logits_ablated"]).max()
                compared += 1
                if not error <= bound:
                    failures.append(f"{name}: logits are {error:.1e} off PyTorch's")
    print(f"onnx.checker accepts {checked} edited files ({unchecked} exports it refuses unedited); "
          f"logits of {compared} compared with PyTorch; {len(failures)} failures")
    print("\n".join(failures))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
