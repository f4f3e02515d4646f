"""Random wide models quantised by the onnxruntime-genai builder: fixtures/quant/genai-<name>/model.onnx.

The same Llama as random_models.py (common.py), one with tied embeddings, and a gpt-oss of three experts, each built by
`onnxruntime_genai.models.builder` with the options of `VARIANTS`. The weights are kept in model.onnx.data, as the
builder writes them. Entries go to fixtures/quant/index.json beside the others.

Run from anywhere, in environment B of tools/zoo/README.md, after random_models.py:
  python tools/quant/random_genai.py [--only name,name]
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from common import FIXTURES, QUANT, input_ids, measure, one_line, random_model, record, versions
from safetensors.torch import save_file

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BASES = {"llama": (6, {}), "tied": (7, {"tie_word_embeddings": True}), "even": (8, {"intermediate_size": 64}),
         "tied-even": (10, {"intermediate_size": 64, "tie_word_embeddings": True}), "gpt_oss": (9, {})}
# name: base, precision, provider, extra options, format, bits, block, quantised writers
VARIANTS: dict[str, tuple[str, str, str, list[str], str, int, int | None, int]] = {
    "int4": ("llama", "int4", "cpu", [], "MatMulNBits", 4, 32, 2),
    "int4-b16-asym": ("llama", "int4", "cpu", ["block_size=16", "is_symmetric=false"], "MatMulNBits", 4, 16, 2),
    "int8": ("llama", "int8", "cpu", [], "MatMulNBits", 8, 32, 2),
    "int4-fp16": ("llama", "int4", "cuda", ["block_size=64"], "MatMulNBits", 4, 64, 2),
    "int4-qdq": ("llama", "int4", "cpu", ["use_qdq=true"], "DequantizeLinear", 4, 32, 2),
    "rtn_last": ("llama", "int4", "cpu", ["algo_config=rtn_last"], "MatMulNBits of 4 and 8 bits", 4, 32, 2),
    "k_quant_mixed": ("even", "int4", "cpu", ["algo_config=k_quant_mixed", "block_size=16"],
                      "MatMulNBits of 4 and 8 bits", 4, 16, 2),
    "gather": ("llama", "int4", "cpu", ["op_types_to_quantize=MatMul/Gather"], "GatherBlockQuantized", 4, 32, 3),
    "shared": ("tied", "int4", "cpu", ["shared_embeddings=true"], "GatherBlockQuantized", 4, 32, 3),
    "shared-rtn_last": ("tied", "int4", "cpu", ["shared_embeddings=true", "algo_config=rtn_last"],
                        "GatherBlockQuantized", 8, 32, 3),
    "shared-k_quant": ("tied-even", "int4", "cpu", ["shared_embeddings=true", "algo_config=k_quant", "block_size=16"],
                       "GatherBlockQuantized", 4, 16, 3),
    "qmoe": ("gpt_oss", "int4", "cpu", [], "QMoE", 4, 32, 2),
    "qmoe-channel": ("gpt_oss", "int4", "cpu", ["qmoe_block_size=0"], "QMoE", 4, None, 2),
    "qmoe-int8": ("gpt_oss", "int4", "cpu", ["moe_quant_type=int8"], "QMoE", 8, 32, 2),
    "qmoe-cuda": ("gpt_oss", "int4", "cuda", [], "QMoE", 4, 32, 2),
}

# Layouts that only a GPU's kernel can tell: to be refused by the node's name.
REFUSE = {"qmoe-cuda": "weights packed for CUDA, fc2 [experts, K, N / 2], and no attribute says so: the CPU provider "
                       "reads beyond the scales, gives other logits, and may crash"}


def mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The nearest MXFP4 of gpt-oss experts [experts, K, N]: its values, and the blocks and scales of a checkpoint."""
    levels = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    groups = weight.transpose(1, 2).reshape(weight.shape[0], weight.shape[2], -1, 32)
    exponent = (groups.abs().amax(-1) / 6).log2().ceil()
    ratio = groups / exponent.exp2()[..., None]
    codes = (ratio.abs()[..., None] - levels).abs().argmin(-1)
    values = levels[codes] * ratio.sign() * exponent.exp2()[..., None]
    codes = (codes + 8 * (ratio < 0)).to(torch.uint8)
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    return values.reshape(weight.shape[0], weight.shape[2], -1).transpose(1, 2), {
        "blocks": blocks.contiguous(), "scales": (exponent + 127).to(torch.uint8).contiguous()}


def save_experts(model: Any, folder: pathlib.Path) -> None:
    """Beside the dense weights, the experts as gpt-oss checkpoints have them: the builder reads only those."""
    extra = {}
    for layer, block in enumerate(model.model.layers):
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(block.mlp.experts, name)
            values, parts = mxfp4(weight.data)
            weight.data.copy_(values)
            extra.update({f"model.layers.{layer}.mlp.experts.{name}_{part}": v for part, v in parts.items()})
    model.save_pretrained(folder)
    save_file(extra, folder / "experts.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(extra, "experts.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def build(source: pathlib.Path, out: pathlib.Path, precision: str, provider: str, options: list[str]) -> None:
    """Run the builder as its command line does; raises with its last line of output."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(out), "-p",
               precision, "-e", provider, "-c", str(source / "cache")]
    command += ["--extra_options", *options] if options else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"exit status {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","))
    args = parser.parse_args()
    packages = versions("onnxruntime-genai", "onnxruntime", "torch", "transformers", "onnx-ir")
    with tempfile.TemporaryDirectory() as lent:
        work, want = pathlib.Path(lent), {}
        for name, (seed, changed) in BASES.items():
            model = random_model(seed, experts=name == "gpt_oss", **changed)
            (save_experts if name == "gpt_oss" else lambda m, f: m.save_pretrained(f))(model, work / name)
            for file in TOKENIZER:
                shutil.copyfile(FIXTURES / "chat" / file, work / name / file)
            with torch.no_grad():
                want[name] = model(torch.tensor(input_ids()), use_cache=False).logits.numpy()
        for name, (base, precision, provider, options, form, bits, block, writers) in VARIANTS.items():
            if args.only and name not in args.only:
                continue
            folder = QUANT / f"genai-{name}"
            command = " ".join(["-p", precision, "-e", provider, *options])
            entry: dict[str, Any] = {
                "name": f"genai-{name}", "file": f"genai-{name}/model.onnx", "base": base, "format": form,
                "bits": bits, "block": block, "generator": "onnxruntime-genai", "config": command,
                "quantised_writers": writers, "writers": 3, "versions": packages}
            if name in REFUSE:
                entry.update({"refuse": True, "note": REFUSE[name]})
            shutil.rmtree(folder, ignore_errors=True)
            try:
                build(work / base, work / "out", precision, provider, options)
                folder.mkdir()
                for file in ("model.onnx", "model.onnx.data", "genai_config.json"):
                    shutil.copyfile(work / "out" / file, folder / file)
                measure(entry, want[base].astype(np.float64))
                entry["run"] = entry["run"] and name not in REFUSE
            except Exception as error:
                entry.update({"file": None, "run": False, "error": one_line(error)})
            shutil.rmtree(work / "out", ignore_errors=True)
            record(entry)


if __name__ == "__main__":
    main()
