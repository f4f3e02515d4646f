"""Random wide models in every format that ONNX Runtime's quantisers write: fixtures/quant/<name>.onnx.

One random Llama (common.py: width 256, one layer) is exported by optimum, run through onnxslim, and quantised by each
entry of `VARIANTS`. What no quantiser writes but the operators' specifications allow is made by hand, and its entry
says so (`generator: hand`). fixtures/quant/index.json tells for every file the format, the settings, which writers to
the residual stream are quantised, whether ONNX Runtime's CPU provider runs it, and the error of what did not work.
Also direction.safetensors (`direction`, a random unit vector) and input_ids.safetensors.

Run from anywhere, in environment A of tools/zoo/README.md:  python tools/quant/random_models.py [--only name,name]
random_genai.py, in environment B, adds the files of the genai builder.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from common import HEAD, LENGTH, QUANT, VOCABULARY, WIDTH, input_ids, logits, measure, one_line, random_model, record
from common import slim, versions
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static)
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig, GPTQWeightOnlyQuantConfig, HQQWeightOnlyQuantConfig, KQuantWeightOnlyQuantConfig,
    MatMulNBitsQuantizer, RTNWeightOnlyQuantConfig)
from onnxruntime.transformers.float16 import convert_float_to_float16
from optimum.exporters.onnx import main_export
from safetensors.numpy import save_file

Graph = onnx.ModelProto
FILES: dict[str, pathlib.Path] = {}


# The float bases: seed and what differs from common.CONFIG. RTN and k_quant fail on an odd number of 4-bit blocks
# with zero points: `even` is for them.
BASES: dict[str, tuple[int, dict[str, Any]]] = {
    "llama": (6, {}), "tied": (7, {"tie_word_embeddings": True}), "even": (8, {"intermediate_size": 64})}


def export(work: pathlib.Path, name: str) -> pathlib.Path:
    """A float base, exported by optimum and slimmed; shapes of intermediate values are left out for size."""
    folder = work / name
    seed, changed = BASES[name]
    random_model(seed, **changed).save_pretrained(folder)
    main_export(str(folder), output=str(folder / "onnx"), task="text-generation-with-past", dtype="fp32",
                device="cpu", do_validation=False, no_post_process=False, library_name="transformers")
    model = slim(onnx.load(str(folder / "onnx" / "model.onnx")))
    del model.graph.value_info[:]
    onnx.save(model, str(folder / "base.onnx"))
    return folder / "base.onnx"


def base(name: str = "llama") -> Graph:
    return onnx.load(str(FILES[name]))


def nbits(config: Any = None, source: str = "llama", **options: Any) -> Graph:
    quantizer = MatMulNBitsQuantizer(base(source), algo_config=config, **options)
    quantizer.process()
    return quantizer.model.model


def default(bits: int, block: int, symmetric: bool, **options: Any) -> Callable[[], Graph]:
    return lambda: nbits(DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=symmetric, bits=bits, **options))


def bnb4(kind: int, block: int) -> Graph:
    quantizer = MatMulBnb4Quantizer(base(), kind, block)
    quantizer.process()
    return quantizer.model.model


class Random(CalibrationDataReader):
    """Random ids with empty caches."""

    def __init__(self, count: int = 6) -> None:
        draw = np.random.default_rng(1)
        self.rows = iter([draw.integers(3, VOCABULARY, (2, LENGTH)) for _ in range(count)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        ids = next(self.rows, None)
        if ids is None:
            return None
        empty = np.zeros((2, 1, 0, HEAD), np.float32)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids),
                "position_ids": np.broadcast_to(np.arange(LENGTH), ids.shape).copy(),
                "past_key_values.0.key": empty, "past_key_values.0.value": empty}


def through_file(write: Callable[[str, str], None], source: pathlib.Path | None = None) -> Graph:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.onnx"
        write(str(source or FILES["llama"]), str(out))
        return onnx.load(str(out))


def dynamic(kind: QuantType, source: str = "llama", **options: Any) -> Graph:
    made = through_file(lambda src, out: quantize_dynamic(src, out, weight_type=kind, **options), FILES[source])
    del made.graph.value_info[:]
    return made


def static(**options: Any) -> Graph:
    """quantize_static, but for the attention's mask, whose lowest float leaves no levels for the rest."""
    options["nodes_to_exclude"] = [n.name for n in base().graph.node if n.op_type in ("Add", "Where", "Softmax")
                                   and "self_attn" in n.name or n.op_type in ("Mul", "Where", "Gather")
                                   and "self_attn" not in n.name and "mlp" not in n.name and "embed" not in n.name]
    made = through_file(lambda src, out: quantize_static(
        src, out, Random(), quant_format=options.pop("quant_format", QuantFormat.QDQ), **options))
    del made.graph.value_info[:]
    return made


def offline(model: Graph) -> Graph:
    """The model as ONNX Runtime's extended optimisations save it (fused operators of com.microsoft)."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(out)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = onnx.load(str(out))
    del made.graph.value_info[:]
    return made


def half(model: Graph) -> Graph:
    made = convert_float_to_float16(model, keep_io_types=False)
    del made.graph.value_info[:]
    return made


def bfloat16(model: Graph) -> Graph:
    """A float16 graph with float16 made bfloat16 everywhere; Sin and Cos take it from opset 22 on."""
    for opset in model.opset_import:
        opset.version = 22 if not opset.domain else opset.version
    model.ir_version = max(model.ir_version, 10)
    old, new = TensorProto.FLOAT16, TensorProto.BFLOAT16

    def convert(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == old:
            value = torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32)).bfloat16()
            raw = value.view(torch.int16).numpy().tobytes()
            tensor.ClearField("int32_data")
            tensor.data_type, tensor.raw_data = new, raw

    for tensor in model.graph.initializer:
        convert(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                convert(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == old:
                attribute.i = new
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == old:
            value.type.tensor_type.elem_type = new
    return model


def tensor(model: Graph, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def constant_matmuls(model: Graph, kind: str = "MatMul") -> list[onnx.NodeProto]:
    """The MatMul nodes whose second input is an initializer; not the output head."""
    constants = {t.name for t in model.graph.initializer}
    return [n for n in model.graph.node
            if n.op_type == kind and n.input[1] in constants and "lm_head" not in n.name]


def quantise(weight: np.ndarray, kind: int, axis: int | None, block: int, zero: bool) -> tuple:
    """Codes, scale and zero point of a matrix: per tensor, per entry of `axis`, or in blocks along `axis`."""
    low, high = {TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15), TensorProto.INT8: (-128, 127),
                 TensorProto.UINT8: (0, 255)}[kind]
    if axis is None:
        groups = weight.reshape(1, 1, -1)
    elif block:
        moved = np.moveaxis(weight, axis, -1)
        pad = -moved.shape[-1] % block
        groups = np.pad(moved, ((0, 0), (0, pad))).reshape(moved.shape[0], -1, block)
    else:
        groups = np.moveaxis(weight, axis, 0)[:, None, :]
    top, bottom = np.maximum(groups.max(-1), 0), np.minimum(groups.min(-1), 0)
    if zero:
        scale = ((top - bottom) / (high - low)).astype(np.float32)
        point = np.clip(np.rint(low - bottom / scale), low, high)
    else:
        scale = (np.maximum(top, -bottom) / high).astype(np.float32)
        point = np.zeros_like(scale)
    codes = np.clip(np.rint(groups / scale[..., None] + point[..., None]), low, high)
    if axis is None:
        return codes.reshape(weight.shape), scale.reshape(()), point.reshape(())
    if not block:
        return np.moveaxis(codes[:, 0], 0, axis), scale[:, 0], point[:, 0]
    codes = np.moveaxis(codes.reshape(codes.shape[0], -1)[:, : weight.shape[axis]], -1, axis)
    return codes, np.moveaxis(scale, -1, axis), np.moveaxis(point, -1, axis)


def stored(name: str, kind: int, value: np.ndarray) -> onnx.TensorProto:
    """An integer tensor, 4-bit ones packed two a byte over the flat order."""
    if kind in (TensorProto.INT4, TensorProto.UINT4):
        flat = value.reshape(-1).astype(np.int64) & 15
        flat = np.append(flat, [0] * (flat.size % 2)).astype(np.uint8)
        return helper.make_tensor(name, kind, value.shape, (flat[::2] | flat[1::2] << 4).tobytes(), True)
    return numpy_helper.from_array(value.astype(np.int8 if kind == TensorProto.INT8 else np.uint8), name)


def dequantised(kind: int, axis: int | None, block: int = 0, zero: bool = True, gemm: bool = False) -> Graph:
    """Every MatMul of a layer with its weight behind a DequantizeLinear; with `gemm` as Gemm with transB."""
    model = base()
    for opset in model.opset_import:
        opset.version = max(opset.version, 21)
    model.ir_version = max(model.ir_version, 10)
    nodes, shapes = [], 0
    wanted = {n.name for n in constant_matmuls(model)}
    for node in model.graph.node:
        if node.name not in wanted:
            nodes.append(node)
            continue
        old = tensor(model, node.input[1])
        weight = numpy_helper.to_array(old)
        weight = np.ascontiguousarray(weight.T) if gemm else weight
        name = node.name.strip("/").replace("/", ".")
        codes, scale, point = quantise(weight, kind, axis, block, zero)
        made = [stored(f"{name}.weight_quantized", kind, codes), numpy_helper.from_array(scale, f"{name}.weight_scale")]
        made += [stored(f"{name}.weight_zero_point", kind, point)] if zero else []
        options = {**({} if axis is None else {"axis": axis}), **({"block_size": block} if block else {})}
        model.graph.initializer.remove(old)
        model.graph.initializer.extend(made)
        nodes.append(helper.make_node("DequantizeLinear", [t.name for t in made], [f"{name}.weight"],
                                      f"{node.name}_dequantize", **options))
        if not gemm:
            node.input[1] = f"{name}.weight"
            nodes.append(node)
            continue
        if not shapes:
            shapes = 1
            ends = numpy_helper.from_array(np.array([0], np.int64), "gemm.start"), \
                numpy_helper.from_array(np.array([2], np.int64), "gemm.end")
            model.graph.initializer.extend(ends)
            nodes.append(helper.make_node("Shape", ["input_ids"], ["gemm.batch_length"], "gemm_shape"))
        k, n = weight.shape[1], weight.shape[0]
        model.graph.initializer.extend([numpy_helper.from_array(np.array([-1, k], np.int64), f"{name}.rows"),
                                        numpy_helper.from_array(np.array([n], np.int64), f"{name}.width")])
        nodes += [
            helper.make_node("Reshape", [node.input[0], f"{name}.rows"], [f"{name}.flat"], f"{node.name}_flat"),
            helper.make_node("Gemm", [f"{name}.flat", f"{name}.weight"], [f"{name}.product"], f"{node.name}_gemm",
                             transB=1),
            helper.make_node("Concat", ["gemm.batch_length", f"{name}.width"], [f"{name}.shape"],
                             f"{node.name}_shape", axis=0),
            helper.make_node("Reshape", [f"{name}.product", f"{name}.shape"], [node.output[0]], f"{node.name}_back"),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def reordered(zero: bool) -> Graph:
    """MatMulNBits of 4 bits with g_idx: the scale block of an input is a random permutation's."""
    model, plain = nbits(bits=4, block_size=16, is_symmetric=not zero), base()
    draw = np.random.default_rng(2)
    originals = {n.output[0]: numpy_helper.to_array(tensor(plain, n.input[1])) for n in constant_matmuls(plain)}
    for node in constant_matmuls(model, "MatMulNBits"):
        weight = originals[node.output[0]]
        order = draw.permutation(weight.shape[0])
        pad = -weight.shape[0] % 16
        packed = np.pad(weight[order], ((0, pad), (0, 0)))
        kind = TensorProto.UINT4
        codes, scale, point = quantise(packed, kind, 0, 16, True)
        if not zero:
            scale = np.abs(packed.reshape(-1, 16, packed.shape[1])).max(1).astype(np.float32) / 7
            point = np.full_like(scale, 8)
            codes = np.clip(np.rint(packed / np.repeat(scale, 16, 0)) + 8, 0, 15)
        back = np.full(packed.shape, 8)
        back[order] = codes[: weight.shape[0]]
        flat = back.T.astype(np.uint8)  # [N, padded K]
        blob = (flat[:, ::2] | flat[:, 1::2] << 4).reshape(weight.shape[1], -1, 8)
        index = np.empty(weight.shape[0], np.int32)
        index[order] = np.arange(weight.shape[0]) // 16
        values = {node.input[1]: blob, node.input[2]: scale.T.copy()}
        if zero:
            points = point.T.astype(np.uint8)
            points = np.pad(points, ((0, 0), (0, points.shape[1] % 2)))
            values[node.input[3]] = points[:, ::2] | points[:, 1::2] << 4
        for name, value in values.items():
            tensor(model, name).CopyFrom(numpy_helper.from_array(value, name))
        name = f"{node.input[1]}_g_idx"
        model.graph.initializer.append(numpy_helper.from_array(index, name))
        node.input.extend([""] * (4 - len(node.input)) + [name])
    return model


def byte_gather(bits: int) -> Graph:
    """The 4-bit model with its embedding as GatherBlockQuantized of bytes that hold 2, 4 or 8 bits."""
    model = nbits(bits=4, block_size=32, is_symmetric=True)
    node = next(n for n in model.graph.node if n.op_type == "Gather" and "embed" in n.name)
    old = tensor(model, node.input[0])
    table = numpy_helper.to_array(old)
    groups = table.reshape(VOCABULARY, -1, 32)
    top, bottom = groups.max(-1), groups.min(-1)
    scale = ((top - bottom) / (2 ** bits - 1)).astype(np.float32)
    zero = np.rint(-bottom / scale)
    codes = np.clip(np.rint(groups / scale[..., None]) + zero[..., None], 0, 2 ** bits - 1)

    def pack(value: np.ndarray) -> np.ndarray:
        parts = value.astype(np.uint8).reshape(VOCABULARY, -1, 8 // bits)
        return sum(parts[..., i] << (bits * i) for i in range(8 // bits)).astype(np.uint8)

    values = {"embed_q": pack(codes), "embed_scales": scale, "embed_zero_points": pack(zero)}
    model.graph.initializer.remove(old)
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    at = list(model.graph.node).index(node)
    new = helper.make_node("GatherBlockQuantized", ["embed_q", node.input[1], "embed_scales", "embed_zero_points"],
                           list(node.output), f"{node.name}_Q{bits}", domain="com.microsoft", bits=bits,
                           block_size=32, gather_axis=0, quantize_axis=1)
    model.graph.node.remove(node)
    model.graph.node.insert(at, new)
    return model


def prepacked() -> Graph:
    """A file that says its first writer is packed for a GPU: to be refused by the node's name."""
    model = nbits(bits=4, block_size=64, is_symmetric=True)
    node = next(n for n in model.graph.node if n.op_type == "MatMulNBits" and "o_proj" in n.name)
    node.attribute.append(helper.make_attribute("weight_prepacked", 1))
    return model


@dataclasses.dataclass
class Variant:
    """How a file is made, and what is in it. `writers` counts the quantised ones of embedding, attention and MLP."""

    make: Callable[[], Graph]
    format: str
    bits: int
    block: int | None
    config: str
    writers: int = 2
    base: str = "llama"
    generator: str = "onnxruntime"
    note: str = ""
    refuse: bool = False


def variants() -> dict[str, Variant]:
    out = {}

    def add(name: str, make: Callable[[], Graph], *about: Any, **more: Any) -> None:
        out[name] = Variant(make, *about, **more)

    for bits, blocks in {4: ((16, True), (16, False), (32, True), (32, False), (64, True), (64, False), (128, True),
                             (128, False)), 8: ((16, False), (32, True), (64, False), (128, True)),
                         2: ((16, True), (32, False), (64, True), (128, False))}.items():
        for block, symmetric in blocks:
            kind = "sym" if symmetric else "asym"
            add(f"nbits{bits}-b{block}-{kind}", default(bits, block, symmetric), "MatMulNBits", bits, block,
                f"DefaultWeightOnlyQuantConfig(bits={bits}, block_size={block}, is_symmetric={symmetric})")
    for bits, block in ((4, 32), (2, 16), (8, 64)):
        add(f"nbits{bits}-b{block}-hqq", lambda bits=bits, block=block: nbits(
            HQQWeightOnlyQuantConfig(block_size=block, bits=bits)), "MatMulNBits", bits, block,
            f"HQQWeightOnlyQuantConfig(block_size={block}, bits={bits})")
    add("nbits4-b32-rtn-sym", lambda: nbits(RTNWeightOnlyQuantConfig(), block_size=32, is_symmetric=True),
        "MatMulNBits", 4, 32, "RTNWeightOnlyQuantConfig(), block_size=32, is_symmetric=True")
    add("nbits4-b16-rtn-asym", lambda: nbits(RTNWeightOnlyQuantConfig(), "even", block_size=16, is_symmetric=False),
        "MatMulNBits", 4, 16, "RTNWeightOnlyQuantConfig(), block_size=16, is_symmetric=False", base="even")
    add("nbits4-b16-k_quant", lambda: nbits(KQuantWeightOnlyQuantConfig(), "even", block_size=16), "MatMulNBits", 4, 16,
        "KQuantWeightOnlyQuantConfig(), block_size=16", base="even")
    add("nbits4-b32-gptq", lambda: nbits(GPTQWeightOnlyQuantConfig(Random(2)), "even", block_size=16), "MatMulNBits",
        4, 16, "GPTQWeightOnlyQuantConfig(random ids), block_size=16", base="even")
    add("nbits4-b16-gidx", lambda: reordered(False), "MatMulNBits", 4, 16, "g_idx of a random permutation",
        generator="hand")
    add("nbits4-b16-gidx-asym", lambda: reordered(True), "MatMulNBits", 4, 16,
        "g_idx of a random permutation, zero points", generator="hand", refuse=True,
        note="ONNX Runtime 1.32's CPU provider ignores the packed zero points of a node with g_idx: its logits are "
             "those of zero point 8")
    add("nbits4-b32-sym-fp16", lambda: half(nbits(bits=4, block_size=32, is_symmetric=True)), "MatMulNBits", 4, 32,
        "block_size=32, is_symmetric=True, then convert_float_to_float16")
    add("nbits8-b64-asym-fp16", lambda: half(default(8, 64, False)()), "MatMulNBits", 8, 64,
        "bits=8, block_size=64, is_symmetric=False, then convert_float_to_float16")
    add("nbits4-b32-hqq-fp16", lambda: half(nbits(HQQWeightOnlyQuantConfig(block_size=32))), "MatMulNBits", 4, 32,
        "HQQWeightOnlyQuantConfig(block_size=32), then convert_float_to_float16")
    add("nbits4-b32-sym-bf16", lambda: bfloat16(half(nbits(bits=4, block_size=32, is_symmetric=True))),
        "MatMulNBits", 4, 32, "float16 made bfloat16", generator="hand")
    add("nbits4-prepacked", prepacked, "MatMulNBits", 4, 64, "weight_prepacked=1 on o_proj: to be refused", writers=2,
        generator="hand", refuse=True, note="the CPU provider ignores the attribute")
    add("bnb4-nf4", lambda: bnb4(MatMulBnb4Quantizer.NF4, 64), "MatMulBnb4", 4, 64, "NF4, block_size=64")
    add("bnb4-fp4", lambda: bnb4(MatMulBnb4Quantizer.FP4, 32), "MatMulBnb4", 4, 32, "FP4, block_size=32")
    add("bnb4-nf4-fp16", lambda: half(bnb4(MatMulBnb4Quantizer.NF4, 16)), "MatMulBnb4", 4, 16,
        "NF4, block_size=16, then convert_float_to_float16")

    for name, symmetric, channel in (("sym", True, False), ("asym", False, False), ("channel-asym", False, True),
                                     ("channel-sym", True, True)):
        add(f"qdq4-{name}", default(4, 32, symmetric, quant_format=QuantFormat.QDQ, channel_wised_quantize=channel),
            "DequantizeLinear", 4, None if channel else 32,
            f"quant_format=QDQ, block_size=32, is_symmetric={symmetric}, channel_wised_quantize={channel}")
    for name, kind, axis, block, zero, gemm in (
            ("dq-int8-tensor", TensorProto.INT8, None, 0, True, False),
            ("dq-uint8-output", TensorProto.UINT8, 1, 0, True, False),
            ("dq-int8-input", TensorProto.INT8, 0, 0, False, False),
            ("dq-uint8-block-input", TensorProto.UINT8, 0, 16, True, False),
            ("dq-int8-block-output", TensorProto.INT8, -1, 32, False, False),
            ("dq-int4-block-output", TensorProto.INT4, 1, 32, True, False),
            ("dq-uint4-tensor", TensorProto.UINT4, None, 0, True, False),
            ("dq-gemm-int8-output", TensorProto.INT8, 0, 0, False, True),
            ("dq-gemm-int4-block-input", TensorProto.INT4, 1, 16, False, True)):
        add(name, lambda kind=kind, axis=axis, block=block, zero=zero, gemm=gemm: dequantised(
            kind, axis, block, zero, gemm), "DequantizeLinear", 4 if "int4" in name else 8, block or None,
            f"axis={axis}, zero points: {zero}" + (", Gemm with transB=1" if gemm else ""), generator="hand")

    for kind, options, name in (
            (QuantType.QInt8, {}, "dynamic-int8"), (QuantType.QUInt8, {}, "dynamic-uint8"),
            (QuantType.QInt8, {"per_channel": True}, "dynamic-int8-channel"),
            (QuantType.QUInt8, {"per_channel": True, "reduce_range": True}, "dynamic-uint8-channel-7bit"),
            (QuantType.QInt8, {"op_types_to_quantize": ["MatMul"]}, "dynamic-int8-matmul")):
        add(name, lambda kind=kind, options=options: dynamic(kind, **options), "MatMulInteger", 8, None,
            f"quantize_dynamic, {kind}, {options}", writers=2 if "matmul" in name else 3)
    add("dynamic-uint8-tied", lambda: dynamic(QuantType.QUInt8, "tied"), "MatMulInteger", 8, None,
        "quantize_dynamic, QUInt8, embedding tied", writers=3, base="tied")
    for name, kind, options in (("dynamic-int8-fused", QuantType.QInt8, {}),
                                ("dynamic-uint8-channel-fused", QuantType.QUInt8, {"per_channel": True})):
        add(name, lambda kind=kind, options=options: offline(dynamic(kind, **options)),
            "DynamicQuantizeMatMul, MatMulIntegerToFloat", 8, None,
            f"quantize_dynamic, {kind}, {options}, then ONNX Runtime's extended optimisation saved", writers=3)
    for name, options in (("static-qdq", {}), ("static-qdq-channel", {"per_channel": True}),
                          ("static-qdq-uint8", {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8})):
        add(name, lambda options=options: static(**options), "static QDQ", 8, None,
            f"quantize_static, QDQ, {options}", writers=3)
    add("static-qoperator", lambda: static(quant_format=QuantFormat.QOperator), "QLinearMatMul, QLinearAdd", 8, None,
        "quantize_static, QOperator", writers=3,
        refuse=True, note="QLinearMatMul and QLinearAdd: the stream itself is of integers")

    for symmetric in (True, False):
        add(f"gather4-{'int4' if symmetric else 'uint4'}", lambda symmetric=symmetric: nbits(
            DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric,
                                         op_types_to_quantize=("MatMul", "Gather"))),
            "GatherBlockQuantized", 4, 32, f"op_types_to_quantize=(MatMul, Gather), is_symmetric={symmetric}",
            writers=3)
    for bits in (2, 4, 8):
        add(f"gather{bits}-bytes", lambda bits=bits: byte_gather(bits), "GatherBlockQuantized", bits, 32,
            f"uint8 data of {bits} bits with zero points beside symmetric 4-bit MatMulNBits", writers=3,
            generator="hand")
    return out


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","))
    args = parser.parse_args()
    QUANT.mkdir(exist_ok=True)
    draw = torch.Generator().manual_seed(5)
    direction = torch.randn(WIDTH, generator=draw, dtype=torch.float64)
    rows = [torch.randperm(VOCABULARY - 3, generator=draw)[:LENGTH] + 3 for _ in range(2)]
    save_file({"direction": (direction / direction.norm()).float().numpy()}, QUANT / "direction.safetensors")
    save_file({"input_ids": torch.stack(rows).numpy()}, QUANT / "input_ids.safetensors")
    packages = versions("onnxruntime", "onnx", "onnxslim", "torch", "transformers", "optimum-onnx")
    with tempfile.TemporaryDirectory() as folder:
        for name in BASES:
            FILES[name] = export(pathlib.Path(folder), name)
        want = {name: logits(path, input_ids(), HEAD) for name, path in FILES.items()}
        print(f"float base: {FILES['llama'].stat().st_size} bytes, logits of std {want['llama'].std():.2f}")
        for name, variant in variants().items():
            if args.only and name not in args.only:
                continue
            entry: dict[str, Any] = {
                "name": name, "file": f"{name}.onnx", "base": variant.base, "format": variant.format,
                "bits": variant.bits, "block": variant.block, "generator": variant.generator,
                "config": variant.config, "quantised_writers": variant.writers, "writers": 3, "versions": packages}
            entry.update({"note": variant.note} if variant.note else {})
            entry.update({"refuse": True} if variant.refuse else {})
            path = QUANT / entry["file"]
            path.unlink(missing_ok=True)
            try:
                onnx.save(variant.make(), str(path))
                measure(entry, want[variant.base])
            except Exception as error:
                entry.update({"file": None, "run": False, "error": one_line(error)})
            record(entry)


if __name__ == "__main__":
    main()
