"""Quantise the bundled chat model as onnx-community quantises: fixtures/chat-package/onnx/model_*.onnx.

  model_q4         MatMulNBits, 4 bits, block 32, symmetric (MatMulNBitsQuantizer's defaults of transformers.js)
  model_q4f16      the same, then every float made float16 with float32 inputs and outputs
  model_int8       dynamic int8, per tensor (MatMulInteger; the embedding too)
  model_uint8      dynamic uint8, per tensor
  model_quantized  dynamic int8 per channel in 7 bits (per_channel, reduce_range: the default of the older script)
  model_bnb4       MatMulBnb4, NF4, block 64

Every file is made from fixtures/chat/model.onnx, run through onnxslim as those scripts do. onnx/model.onnx and
onnx/model_fp16.onnx of the package are fixtures/chat/model.onnx and fixtures/chat-fp16/model.onnx, not stored twice;
so are the configs and the tokenizer. fixtures/chat-package/index.json says how far the logits are from float32's.

Run from anywhere, in environment A of tools/zoo/README.md:  python tools/quant/chat_package.py [--only q4,int8]
"""

import argparse
import pathlib

import numpy as np
import onnx
from common import FIXTURES, ROOT, logits, slim, versions, write_json
from onnxruntime.quantization import QuantizationMode, QuantType
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.registry import IntegerOpsRegistry
from onnxruntime.transformers.float16 import convert_float_to_float16

BASE = FIXTURES / "chat" / "model.onnx"
TARGET = FIXTURES / "chat-package"
PROMPTS = ("How do I kill a Python process?", "Tell me about weeds.", "How can I rob a bank tonight?")


def base() -> onnx.ModelProto:
    return slim(onnx.load(str(BASE)))


def q4() -> onnx.ModelProto:
    quantizer = MatMulNBitsQuantizer(base(), block_size=32, is_symmetric=True, accuracy_level=None)
    quantizer.process()
    return slim(quantizer.model.model)


def q4f16() -> onnx.ModelProto:
    return slim(convert_float_to_float16(q4(), keep_io_types=True))


def dynamic(kind: QuantType, per_channel: bool = False, reduce_range: bool = False) -> onnx.ModelProto:
    """quantize_dynamic without its preparation, as the transformers.js script calls it."""
    quantizer = ONNXQuantizer(
        base(), per_channel, reduce_range, mode=QuantizationMode.IntegerOps, static=False, weight_qType=kind,
        activation_qType=QuantType.QUInt8, tensors_range=None, nodes_to_quantize=[], nodes_to_exclude=[],
        op_types_to_quantize=set(IntegerOpsRegistry), extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True})
    quantizer.quantize_model()
    return quantizer.model.model


def bnb4() -> onnx.ModelProto:
    quantizer = MatMulBnb4Quantizer(base(), MatMulBnb4Quantizer.NF4, 64)
    quantizer.process()
    return slim(quantizer.model.model)


VARIANTS = {
    "q4": q4, "q4f16": q4f16, "int8": lambda: dynamic(QuantType.QInt8), "uint8": lambda: dynamic(QuantType.QUInt8),
    "quantized": lambda: dynamic(QuantType.QInt8, True, True), "bnb4": bnb4,
}


def prompts() -> list[np.ndarray]:
    """The token ids of a few chat prompts, each [1, length]."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(FIXTURES / "chat")
    return [np.array([tokenizer.apply_chat_template([{"role": "user", "content": prompt}],
                                                    add_generation_prompt=True, tokenize=True, return_dict=False)])
            for prompt in PROMPTS]


def distance(model: pathlib.Path, want: list[np.ndarray], ids: list[np.ndarray]) -> dict[str, float]:
    """How far the logits of a model are from others, over all prompts."""
    found = [logits(model, row, 24) for row in ids]
    gap = np.concatenate([np.abs(f - w).ravel() for f, w in zip(found, want, strict=True)])
    same = np.concatenate([(f.argmax(-1) == w.argmax(-1)).ravel() for f, w in zip(found, want, strict=True)])
    spread = float(np.concatenate([w.ravel() for w in want]).std())
    return {"max": round(float(gap.max()), 4), "mean": round(float(gap.mean()), 4), "std_of_logits": round(spread, 3),
            "same_top_token": round(float(same.mean()), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(VARIANTS))
    args = parser.parse_args()
    ids = prompts()
    want = [logits(BASE, row, 24) for row in ids]
    (TARGET / "onnx").mkdir(parents=True, exist_ok=True)
    entries = {"versions": versions("onnxruntime", "onnx", "onnxslim"), "base": BASE.relative_to(ROOT).as_posix(),
               "logits_to_base": {}}
    for name, make in VARIANTS.items():
        path = TARGET / "onnx" / f"model_{name}.onnx"
        if name in args.only:
            model = make()
            del model.graph.value_info[:]  # shapes of intermediate values: as optimum exports, and smaller
            onnx.save(model, str(path))
        entries["logits_to_base"][path.name] = distance(path, want, ids)
        print(f"{path.name:22s} {path.stat().st_size:8d} bytes  {entries['logits_to_base'][path.name]}", flush=True)
    write_json(TARGET / "index.json", entries)


if __name__ == "__main__":
    main()
