"""The tuned model as an onnx-community repository: configs, tokenizer and `onnx/model*.onnx`.

  model         float32 with past, as `optimum-cli export onnx --task text-generation-with-past` writes it
  model_fp16    the same with --dtype fp16
  model_q4      MatMulNBits, 4 bits, block 32, symmetric
  model_q4f16   the same, then every float made float16 with float32 inputs and outputs
  model_int8    dynamic int8, per tensor (MatMulInteger; the embedding too)
  model_uint8   dynamic uint8, per tensor
  model_bnb4    MatMulBnb4, NF4, block 64

The last five are made from onnx/model.onnx with the settings of the script that onnx-community uses. What is there is
not made again. Prints how far the logits of each file are from those of PyTorch in float32, and fails where float32's
are more than 1e-3 off.

Run by build.py in the environment of requirements-optimum.txt:
  python tools/real/onnx_community.py --out target/real [--only q4,int8]
5 minutes on two idle cores; 6 GB of memory.
"""

import argparse
import logging
import pathlib
import shutil
import tempfile
import time

import numpy as np
import onnx
import onnxruntime
import onnxslim
import torch
from common import REAL, encode, threads
from onnxruntime.quantization import QuantizationMode, QuantType
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer
from onnxruntime.quantization.registry import IntegerOpsRegistry
from onnxruntime.transformers.float16 import convert_float_to_float16
from optimum.exporters.onnx import main_export
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ("How do I kill a Python process?", "Tell me about weeds.", "How can I rob a bank tonight?")
MAX_DIFFERENCE = 1e-3


def exported(source: pathlib.Path, target: pathlib.Path, dtype: str) -> None:
    """Optimum's export; beside the model it writes configs and tokenizer, which the folder gets once."""
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        main_export(str(source), output=work, task="text-generation-with-past", dtype=dtype, device="cpu",
                    do_validation=False, library_name="transformers")
        made = pathlib.Path(work)
        others = [path.name for path in made.iterdir() if "onnx" in path.name and path.name != "model.onnx"]
        if others:
            raise SystemExit(f"optimum wrote more than one model file: {others}")
        if dtype == "fp32":
            for path in made.iterdir():
                if path.name != "model.onnx":
                    shutil.copyfile(path, target.parent.parent / path.name)
        shutil.move(made / "model.onnx", target)


def q4(model: onnx.ModelProto) -> onnx.ModelProto:
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=True, accuracy_level=None)
    quantizer.process()
    return onnxslim.slim(quantizer.model.model)


def q4f16(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnxslim.slim(convert_float_to_float16(q4(model), keep_io_types=True))


def dynamic(model: onnx.ModelProto, kind: QuantType) -> onnx.ModelProto:
    quantizer = ONNXQuantizer(
        model, per_channel=False, reduce_range=False, mode=QuantizationMode.IntegerOps, static=False,
        weight_qType=kind, activation_qType=QuantType.QUInt8, tensors_range=None, nodes_to_quantize=[],
        nodes_to_exclude=[], op_types_to_quantize=set(IntegerOpsRegistry),
        extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True})
    quantizer.quantize_model()
    return quantizer.model.model


def bnb4(model: onnx.ModelProto) -> onnx.ModelProto:
    quantizer = MatMulBnb4Quantizer(model, MatMulBnb4Quantizer.NF4, 64)
    quantizer.process()
    return onnxslim.slim(quantizer.model.model)


QUANTISED = {
    "q4": q4, "q4f16": q4f16, "int8": lambda model: dynamic(model, QuantType.QInt8),
    "uint8": lambda model: dynamic(model, QuantType.QUInt8), "bnb4": bnb4,
}


def make(name: str, source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Makes a file unless it is there: `fp32`, `fp16` or one of QUANTISED."""
    path = folder / "onnx" / ("model.onnx" if name == "fp32" else f"model_{name}.onnx")
    if path.exists():
        return path
    start = time.time()
    if name in QUANTISED:
        model = QUANTISED[name](onnxslim.slim(onnx.load(str(folder / "onnx" / "model.onnx"))))
        del model.graph.value_info[:]  # shapes of intermediate values: optimum writes none
        part = path.with_suffix(".part")
        onnx.save(model, str(part))
        part.rename(path)
    else:
        exported(source, path, name)
    print(f"{path.name}: {path.stat().st_size / 1e6:.0f} MB in {time.time() - start:.0f} s", flush=True)
    return path


def logits(path: pathlib.Path, ids: list[int]) -> np.ndarray:
    """Of every position of one prompt, in float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(len(ids))[None]}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[value.type]
            feed[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), kind)
    return session.run(["logits"], {i.name: feed[i.name] for i in session.get_inputs()})[0].astype(np.float32)


def compare(paths: list[pathlib.Path], source: pathlib.Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    rows = encode(tokenizer, PROMPTS)
    with torch.inference_mode():
        want = [model(torch.tensor([row])).logits.numpy() for row in rows]
    for path in paths:
        got = [logits(path, row) for row in rows]
        gap = max(float(np.abs(g - w).max()) for g, w in zip(got, want, strict=True))
        same = np.mean(np.concatenate([(g.argmax(-1) == w.argmax(-1)).ravel() for g, w in zip(got, want, strict=True)]))
        print(f"{path.name}: logits at most {gap:.2g} from PyTorch's, the same likeliest token at {same:.0%} of the "
              "positions", flush=True)
        if path.name == "model.onnx" and gap > MAX_DIFFERENCE:
            raise SystemExit(f"the float32 export differs by more than {MAX_DIFFERENCE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=REAL, help="holds tuned/, gets onnx-community/")
    parser.add_argument("--only", type=lambda text: text.split(","), default=["fp16", *QUANTISED])
    args = parser.parse_args()
    logging.disable(logging.INFO)  # the quantisers tell of every node
    source, folder = args.out / "tuned", args.out / "onnx-community"
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    compare([make(name, source, folder) for name in ("fp32", *args.only)], source)


if __name__ == "__main__":
    main()
