"""Compares what two builds of Lancet bake: every model in fixtures, with and without added nodes, byte by byte.

    git worktree add /tmp/before HEAD~1 && (cd /tmp/before && cargo build)
    cargo build
    python3 tools/same_bytes.py /tmp/before/target/debug/lancet target/debug/lancet

Needs nothing beyond Python. A bake that both builds refuse counts as equal, whatever the words. Ends with exit code 1
where an output differs.
"""

import hashlib
import json
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def models():
    found = [*FIXTURES.glob("zoo/**/*.onnx"), *FIXTURES.glob("quant/**/*.onnx"), *FIXTURES.glob("chat*/**/*.onnx")]
    return sorted(found)


def width(lancet, model):
    done = subprocess.run([lancet, "inspect", model, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        return None
    found = json.loads(done.stdout)
    # before schema 3 a lone model's result was flat
    return found.get("d_model") or found["variants"][0]["inspect"]["d_model"]


def direction(path, d_model):
    """A fixed direction, `[d_model]` float32, as safetensors."""
    header = json.dumps({"direction": {"dtype": "F32", "shape": [d_model], "data_offsets": [0, 4 * d_model]}}).encode()
    header += b" " * (-len(header) % 8)
    values = [((i * 37) % 11) - 4.5 for i in range(d_model)]
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack(f"<{d_model}f", *values))


def baked(lancet, model, file, out, extra):
    command = [lancet, "bake", model, "--direction", file, "-o", out / "model.onnx", "--bytes-only", "--quiet", *extra]
    out.mkdir()
    if subprocess.run(command, capture_output=True).returncode != 0:
        return None
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.rglob("*")) if p.is_file()}


def compare(before, after, model):
    """The number of outputs that both made, and what differs."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        widths = width(before, model), width(after, model)
        if widths[0] != widths[1]:
            return 0, [f"{model}: d_model {widths[0]} before, {widths[1]} after"]
        if widths[0] is None:
            return 0, []
        direction(folder / "d.safetensors", widths[0])
        made, wrong = 0, []
        for i, extra in enumerate(([], ["--weights-only"], ["--strength", "0.5"])):
            was, now = (baked(build, model, folder / "d.safetensors", folder / f"{i}{n}", extra)
                        for n, build in enumerate((before, after)))
            made += was is not None
            if was != now:
                wrong.append(f"{model} {' '.join(extra)}: {was} before, {now} after")
        return made, wrong


def main():
    before, after = sys.argv[1:3]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda model: compare(before, after, model), models()))
    wrong = [line for _, lines in found for line in lines]
    print(*wrong, sep="\n")
    print(f"{len(found)} models, {sum(made for made, _ in found)} outputs, {len(wrong)} differ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
