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


def feed(running: onnxruntime.InferenceSession, ids: np.ndarray, head_size: int) -> dict[str, np.ndarray]:
    """Inputs for a first pass over `ids` [batch, length]: positions from 0, empty caches."""
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
            value = np.zeros((batch, item.shape[1], 0, head_size))
        else:
            raise ValueError(f"unknown input {item.name}")
        out[item.name] = np.ascontiguousarray(value.astype(kind))
    return out


def logits(model: pathlib.Path | bytes, ids: np.ndarray, head_size: int, optimise: bool = True) -> np.ndarray:
    """Logits [batch, length, vocabulary] of a first pass, as float64."""
    running = session(model, optimise)
    return running.run(["logits"], feed(running, ids, head_size))[0].astype(np.float64)


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model through onnxslim, as onnx-community's scripts save it: constants folded, nodes sorted."""
    import onnxslim

    return onnxslim.slim(model)


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")
