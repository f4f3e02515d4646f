"""The genai builder's int4 of the bundled chat model: fixtures/chat-genai-int4/.

The torch weights are read back from fixtures/chat/model.onnx (by node: every MatMul and Mul of the export names its
module), written as a Hugging Face folder whose logits must be those of the ONNX file, and given to
`onnxruntime_genai.models.builder -p int4 -e cpu`. ONNX Runtime's GroupQueryAttention runs heads of 16, 32, ... only
and this model's have 24, so every head is padded to 32 by zeros, which changes nothing: the rotary base is raised to
keep the frequencies and the queries are scaled for the softmax. Prints how far the int4 logits are from float32's.

Run from anywhere, in environment B of tools/zoo/README.md:  python tools/quant/chat_genai.py
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import onnx
import torch
from common import FIXTURES, logits, versions, write_json
from onnx import numpy_helper
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaForCausalLM

HEAD = 32
BASE = FIXTURES / "chat"
TARGET = FIXTURES / "chat-genai-int4"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
             "generation_config.json")


def weights(model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """The state dict of the Llama behind an optimum export; MatMul weights are stored transposed."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        for name in node.input:
            value = constants.get(name)
            if value is None or value.ndim == 0:
                continue
            module = re.sub(r"/layers\.", "/layers.", node.name)
            path = ".".join(part for part in module.split("/")[1:-1])
            if node.op_type == "MatMul":
                found[f"{path}.weight"] = value.T
            elif node.op_type == "Gather" and value.ndim == 2:
                found[f"{path}.weight"] = value
            elif node.op_type == "Mul" and value.ndim == 1 and path.endswith("norm"):
                found[f"{path}.weight"] = value
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in found.items()}


def padded(state: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """The same function with heads of HEAD: zeros after each half of a head (rotary pairs i and i + HEAD / 2)."""
    old = config.head_dim
    half = torch.arange(old // 2)
    at = torch.cat([half, half + HEAD // 2])
    out = dict(state)
    for name, value in state.items():
        kind = name.split(".")[-2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            heads = value.shape[0] // old
            wide = torch.zeros(heads, HEAD, value.shape[1])
            wide[:, at] = value.reshape(heads, old, -1)
            wide *= (HEAD / old) ** 0.5 if kind == "q_proj" else 1.0
            out[name] = wide.reshape(heads * HEAD, -1)
        elif kind == "o_proj":
            heads = value.shape[1] // old
            wide = torch.zeros(value.shape[0], heads, HEAD)
            wide[:, :, at] = value.reshape(-1, heads, old)
            out[name] = wide.reshape(-1, heads * HEAD)
    return out


def main() -> None:
    config = AutoConfig.from_pretrained(BASE)
    ids = np.array([[1, *range(20, 60)]])
    want = logits(BASE / "model.onnx", ids, config.head_dim)
    state = padded(weights(onnx.load(str(BASE / "model.onnx"))), config)
    theta = config.rope_parameters["rope_theta"] ** (HEAD / config.head_dim)
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    config.head_dim = HEAD
    torch_model = LlamaForCausalLM(config).eval()
    missing, extra = torch_model.load_state_dict(state, strict=False)
    if missing or extra:
        raise SystemExit(f"missing {missing}, unexpected {extra}")
    with torch.no_grad():
        error = float(np.abs(torch_model(torch.tensor(ids)).logits.numpy() - want).max())
    print(f"read back: logits {error:.1e} off the ONNX file's")
    if error > 1e-4:
        raise SystemExit("these are not the weights")
    shutil.rmtree(TARGET, ignore_errors=True)
    with tempfile.TemporaryDirectory() as lent:
        folder = pathlib.Path(lent)
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors",
                  metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
        for name in TOKENIZER:
            shutil.copyfile(BASE / name, folder / name)
        subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", lent, "-o", str(TARGET),
                        "-p", "int4", "-e", "cpu", "-c", str(folder / "cache")], check=True, capture_output=True)
        shutil.rmtree(TARGET / "cache", ignore_errors=True)
    found = logits(TARGET / "model.onnx", ids, config.head_dim)
    gap = np.abs(found - want)
    record = {"versions": versions("onnxruntime-genai", "onnxruntime", "torch", "transformers", "onnx-ir"),
              "base": "fixtures/chat/model.onnx", "logits_to_base": {
                  "max": round(float(gap.max()), 4), "mean": round(float(gap.mean()), 4),
                  "std_of_logits": round(float(want.std()), 3),
                  "same_top_token": round(float((found.argmax(-1) == want.argmax(-1)).mean()), 4)}}
    write_json(TARGET / "index.json", record)
    print(record)


if __name__ == "__main__":
    main()
