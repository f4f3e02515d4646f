#!/usr/bin/env bash
# Runs Lancet on a CUDA GPU and compares it with the CPU. Nothing is built and nothing is downloaded here.
#
#   tools/gpu/check.sh LANCET ORT_GPU_FOLDER [REAL_MODEL_FOLDER]
#
# LANCET is a release binary, ORT_GPU_FOLDER the `capi` folder of an onnxruntime-gpu wheel (CUDA's own libraries are found
# by LD_LIBRARY_PATH), REAL_MODEL_FOLDER what tools/real/build.py made (target/real/onnx-community). Needs python3 with
# numpy. About 3 minutes, 6 with the real model. What it prints is meant to be kept; exit code 1 where a check fails.
set -euo pipefail
lancet=$(realpath "$1") ort=$(realpath "$2") real=${3:-}
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$lancet" --version

job() { # DEVICE OUT: the whole job on the bundled model
  "$lancet" run fixtures/chat --prompts fixtures/chat/prompts -o "$work/$2" --device "$1" --ort-lib "$ort" \
    --no-install --json --quiet --max-new-tokens 48 >"$work/$2.json"
}
echo "== the bundled model, CPU and CUDA"
job cpu cpu
job cuda cuda
python3 - "$work" <<'PY' || status=1
import json, pathlib, sys
import numpy as np
work = pathlib.Path(sys.argv[1])

def direction(name):
    data = (work / name / "lancet.direction.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["direction"]
    begin, end = header["data_offsets"]
    kind = {"F64": np.float64, "F32": np.float32}[header["dtype"]]
    return np.frombuffer(data[8 + size + begin : 8 + size + end], kind).astype(np.float64)

one, other = (json.loads((work / f"{name}.json").read_text()) for name in ("cpu", "cuda"))
provider = other["shared"]["provenance"]["execution_provider"]
a, b = direction("cpu"), direction("cuda")
cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
chosen = [run["shared"]["select"]["selected"] for run in (one, other)]
places = [(row["position"], row["layer"]) for row in chosen]
pairs = list(zip(one["variants"][0]["eval"]["answers"], other["variants"][0]["eval"]["answers"], strict=True))
same = sum(x["after"] == y["after"] for x, y in pairs)
verified = all(variant["verify"]["passed"] for run in (one, other) for variant in run["variants"])
print(f"provider {provider}; chosen {places[0]} and {places[1]}; cosine {cosine:.8f}; the same answers {same} of {len(pairs)}; "
      f"verified {verified}")
for name, run in (("cpu", one), ("cuda", other)):
    print(name, {stage: round(value, 2) for stage, value in run["shared"]["seconds"].items()})
sys.exit(not (provider == "cuda" and places[0] == places[1] and cosine > 0.9999 and verified))
PY

echo "== a limit of GPU memory that is too small is an error that says so"
if "$lancet" eval fixtures/chat --device cuda --cuda-memory 0.001 --ort-lib "$ort" --no-install --refusal-tokens I --quiet \
  >/dev/null 2>"$work/limit"; then
  echo "NOT HELD: it ran"
  status=1
else
  head -3 "$work/limit"
fi

if [ -n "$real" ]; then
  for variant in model.onnx model_fp16.onnx model_q4f16.onnx; do
    for device in cpu cuda; do
      echo "== $variant on $device"
      nvidia-smi --query-gpu=memory.used --format=csv,noheader -lms 200 >"$work/used" &
      watch=$!
      timeout 120 "$lancet" eval "$real" --variant "$variant" --device "$device" --ort-lib "$ort" --no-install \
        --max-new-tokens 64 --n-train 136 --n-val 32 --n-test 32 --wrapped-prompts 0 --no-cost --refusal-tokens I \
        2>&1 >/dev/null | grep 'tokens/s$' || status=1
      kill "$watch"
      echo "GPU memory at most $(sort -n "$work/used" | tail -1)"
    done
  done
fi
exit "$status"
