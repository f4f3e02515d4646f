"""What the scripts of this folder share: feeding a model, its logits, versions, and the slim float base."""

import json
import logging
import pathlib
from importlib import metadata
from typing import Any

import numpy as np
import onnx
import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
         "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)


def versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


def session(model: pathlib.Path | bytes, optimise: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def feed(running: onnxruntime.InferenceSession, ids: np.ndarray, head_size: int,
         past: int = 0) -> dict[str, np.ndarray]:
    """Inputs for a first pass over `ids` [batch, length]: positions from 0, caches of length `past`, of zeros."""
    batch, length = ids.shape
    out = {}
    for item in running.get_inputs():
        kind = TYPES[item.type]
        if item.name == "input_ids":
            value = ids
        elif item.name == "attention_mask":
            value = np.ones((batch, length))
        elif item.name == "position_ids":
            value = np.broadcast_to(np.arange(length), (batch, length))
        elif item.name.startswith("past"):
            value = np.zeros((batch, item.shape[1], past, head_size))
        else:
            raise ValueError(f"unknown input {item.name}")
        out[item.name] = np.ascontiguousarray(value.astype(kind))
    return out


def logits(model: pathlib.Path | bytes, ids: np.ndarray, head_size: int, optimise: bool = True) -> np.ndarray:
    """Logits [batch, length, vocabulary] of a first pass, as float64; a sliding cache that refuses none gets room."""
    running = session(model, optimise)
    try:
        return running.run(["logits"], feed(running, ids, head_size))[0].astype(np.float64)
    except Exception as error:
        if "sliding_window_cache" not in str(error):
            raise
        return running.run(["logits"], feed(running, ids, head_size, 64))[0].astype(np.float64)


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model through onnxslim, as onnx-community's scripts save it: constants folded, nodes sorted."""
    import onnxslim

    return onnxslim.slim(model)


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


QUANT = FIXTURES / "quant"
WIDTH, VOCABULARY, HEAD, LENGTH = 256, 24, 16, 7
# K of the writers: 32 (attention) and 40 (MLP), which is no multiple of any block; heads of 16 for GroupQueryAttention.
# No width equals the vocabulary: the genai builder would take it for the output head.
CONFIG = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
          "num_key_value_heads": 1, "head_dim": HEAD, "intermediate_size": 40, "max_position_embeddings": 64,
          "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
EXPERTS = {**CONFIG, "intermediate_size": 64, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 16,
           "layer_types": ["full_attention"]}


def random_model(seed: int, experts: bool = False, **changed: Any) -> Any:
    """A random Llama (or gpt-oss) of one layer and width 256, always the same: every weight fits bfloat16."""
    import torch
    import transformers

    if experts:
        # The builder writes gpt-oss with YaRN only; factor 1 is none (see tools/zoo/transformers5.py).
        rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "truncate": False, "original_max_position_embeddings": 4096}
        config = transformers.GptOssConfig(**{**EXPERTS, **changed}, rope_parameters=rope)
    else:
        config = transformers.LlamaConfig(**{**CONFIG, **changed})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sorted(model.named_parameters()):
            noise = torch.randn(value.shape, generator=draw)
            if value.dim() < 2 or "bias" in name:
                noise = value + 0.2 * noise
            elif "embed" in name:
                noise = 0.5 * noise
            else:
                noise = noise / (value.shape[-1] * value.shape[-2]) ** 0.25
            value.copy_(noise.bfloat16().float())
    return model


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error as one line without paths."""
    import re

    text = re.sub(r"(/[^/\s\"']+)+/(?=[^/\s\"']+)", "", f"{type(error).__name__}: {error}")
    return " ".join(text.split())[:limit]


def input_ids() -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(QUANT / "input_ids.safetensors")["input_ids"]


def record(entry: dict[str, Any]) -> None:
    """Put an entry into fixtures/quant/index.json, in place of an older one of the same name."""
    path = QUANT / "index.json"
    entries = json.loads(path.read_text()) if path.exists() else []
    entries = [e for e in entries if e["name"] != entry["name"]] + [entry]
    write_json(path, sorted(entries, key=lambda e: e["name"]))
    shown = entry.get("error") or entry.get("run_error") or f"max {entry['logits_to_base']}"
    print(f"{entry['name']:34s} {entry.get('bytes', 0):7d} bytes  {shown}", flush=True)


def measure(entry: dict[str, Any], want: np.ndarray) -> None:
    """Whether ONNX Runtime's CPU provider runs a file, and how far its logits are from the float model's."""
    path = QUANT / entry["file"]
    entry["bytes"] = sum(p.stat().st_size for p in path.parent.glob(path.name + "*"))
    try:
        found = logits(path, input_ids(), HEAD)
        entry["logits_to_base"] = round(float(np.abs(found - want).max()), 4)
        entry["run"] = bool(np.isfinite(found).all())
    except Exception as error:
        entry["run"], entry["run_error"] = False, one_line(error)
