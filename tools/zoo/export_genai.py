"""Export the zoo with the onnxruntime-genai model builder (an environment with transformers 5, see README.md).

  genai-fp32   -p fp32 -e cpu
  genai-fp16   -p fp16 -e cuda
  genai-bf16   -p bf16 -e cuda
  genai-int4   -p int4 -e cpu

The builder wants a tokenizer beside the weights: the fixture chat model's is lent to it and not kept.

Run:  python tools/zoo/export_genai.py --weights DIR [--only llama,gemma2] [--exporter genai-fp32]
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import transformers5
from measure import ROOT, chosen, deliver, parser, versions

FLAGS = {
    "genai-fp32": ("fp32", "cpu", "float32"),
    "genai-fp16": ("fp16", "cuda", "float16"),
    "genai-bf16": ("bf16", "cuda", "bfloat16"),
    "genai-int4": ("int4", "cpu", "float32"),
}
TABLE = {
    "genai-fp32": ["llama", "llama_tied", "llama_bias", "qwen3", "gemma", "gemma2", "phi", "phi3", "granite", "gpt_oss",
                   "nemotron", "lfm2", "gemma3_text", "smollm3", "olmo", "olmo2", "mixtral", "qwen3_moe"],
    "genai-fp16": ["llama", "gemma2", "phi", "gpt_oss"],
    "genai-bf16": ["gemma2"],
    "genai-int4": ["llama", "phi3"],
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def build(source: pathlib.Path, tokenizer: pathlib.Path, precision: str, provider: str, out: pathlib.Path) -> None:
    """Run the builder as its command line does; raises with its last line of output."""
    with tempfile.TemporaryDirectory() as lent:
        folder = pathlib.Path(lent)
        shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(transformers5.config(source)))
        for name in TOKENIZER:
            shutil.copyfile(tokenizer / name, folder / name)
        done = subprocess.run(
            [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", lent, "-o", str(out), "-p", precision,
             "-e", provider, "-c", str(folder / "cache")],
            capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise RuntimeError(lines[-1].replace(lent, "DIR") if lines else f"exit status {done.returncode}")


def main() -> None:
    options = parser(__doc__, FLAGS)
    options.add_argument("--tokenizer", type=pathlib.Path, default=ROOT / "fixtures" / "chat")
    args = options.parse_args()
    packages = versions("onnxruntime-genai", "transformers", "torch", "onnxruntime", "onnx-ir")
    for exporter, arch in chosen(TABLE, args):
        precision, provider, dtype = FLAGS[exporter]
        deliver(arch, exporter, dtype, packages, args.out,
                lambda work: build(args.weights / arch, args.tokenizer, precision, provider, work),
                args.work / "genai", keep=("genai_config.json",),
                limit=float("inf") if exporter == "genai-int4" else 0.05)


if __name__ == "__main__":
    main()
