"""Judge quantised models that Lancet has baked: what the edit became, by readers that share no code with it.

  python tools/quant/check.py --lancet target/release/lancet [--only NAME,NAME] [--chat] [--lancet-args "..."]
  python tools/quant/check.py --base FILE --baked FILE --direction FILE

The first form bakes every file of fixtures/quant by its direction (with --chat those of the chat package and the genai
folder too, by the direction of fixtures/chat/reference.safetensors) and judges it, the second judges one pair. For
every quantised matrix that differs between base and baked file, in float64 by readers.py:

  leak      |r^T W|: before, of the nearest rounding of W - r r^T W to the base's grid, after
  error     Frobenius distance to W - r r^T W: of the baked matrix over that of the nearest rounding to the base's grid;
            over the least that a rounding to the baked file's grid could have (`least_error`);
            in % of W
  levels    the largest distance to it, in spacings between the baked file's levels around it
  scales    how many entries have another scale

and of the pair: that what does not belong to a changed matrix is byte for byte the same, padding included; that the
readers agree with ONNX Runtime's operators (every node with an identity matrix or all ids); and that the baked file's
logits are those of the same graph with its matrices replaced by their float values.

Bounds: leak after at most 1e-3 of before (1e-2 at 2 bits); error at most 1.05 times nearest at 8 bits and 1.6 at 4,
or where the stream is wider than 1024 within the least at all; within 1.06 and 1.03 of that least at 4 and 8 bits in streams of
256 or more (narrower ones have too few entries to come near); levels at most 1. Float matrices that changed are exact to their own
rounding. A writer that nodes named lancet.* treat counts as exact. A layout whose entry says `refuse` must be refused
by the node's name where rounding is asked for, and treated by nodes otherwise; a stream of integers is always refused.
Exits 1 if anything fails.

--write-nearest DIR also writes every baked file with its changed matrices rounded to nearest on the base's grid.

Runs in environment A of tools/zoo/README.md (onnx, onnxruntime, numpy, safetensors).
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import readers
from common import FIXTURES, HEAD, QUANT, logits, session
from onnx import TensorProto, helper, numpy_helper
from readers import Grid, Matrix
from safetensors.numpy import load_file, save_file

QUANTISED = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QMoE", "MatMulInteger", "DynamicQuantizeMatMul",
             "MatMulIntegerToFloat")
LEAK = {2: 1e-2, 4: 1e-3, 8: 1e-3}
ERROR = {4: 1.6, 8: 1.05}
# A column of few entries has none that would spend the last of a leak at the price of the others. The bounds are what was found:
# 1.055 in dq-uint4-tensor (one scale for all), 1.032 at most in 180 other models of 4 bits that were tried.
WIDE, OVER_LEAST = 256, {4: 1.06, 8: 1.03}
# The least error itself passes 1.6 times nearest's in wider streams at 4 bits.
ATTAINABLE = 1024
ROUNDING = {TensorProto.FLOAT: 2.0 ** -24, TensorProto.FLOAT16: 2.0 ** -11, TensorProto.BFLOAT16: 2.0 ** -8}


# --- the edit ---------------------------------------------------------------------------------------------------------

def along(weight: np.ndarray, axis: int, direction: np.ndarray) -> np.ndarray:
    """r^T W: the component of every column that lies on the direction."""
    return np.tensordot(weight, direction, ([axis], [0]))


def projected(weight: np.ndarray, axis: int, direction: np.ndarray) -> np.ndarray:
    """W - r r^T W, in float64."""
    moved = np.moveaxis(weight, axis, -1)
    return np.moveaxis(moved - (moved @ direction)[..., None] * direction, -1, axis)


def least_error(grid: Grid, target: np.ndarray, axis: int, direction: np.ndarray) -> float:
    """A lower bound of the error ratio of any rounding to this grid without a leak that is within a level of Y everywhere.

    Such a rounding has each entry on one of the two levels around its exact value. Of every column, choose them so that
    r^T W' = r^T Y and ||W' - Y|| is least; leave out that a choice is whole. An entry then goes a share, 0 to 1, of the way from
    its nearest level to the other one, whole for `step (step - 2 |delta|)` of squared error and `|r| step` of leak: a linear
    program, whose optimum is the fractional knapsack's. Moves that lower the leak are taken by rising cost per unit
    of it until none is left. Infinite where all of them cannot remove it: then the scale has to grow.
    """
    width = len(direction)

    def rows(value: np.ndarray) -> np.ndarray:
        return np.moveaxis(np.broadcast_to(value, target.shape), axis, -1).reshape(-1, width)

    codes = grid.nearest(target)
    nearest, wanted = rows(grid.values(codes)), rows(target)
    if grid.book is None:
        step = np.where(rows(target / np.where(grid.scale == 0, 1, grid.scale) + grid.zero) > rows(codes), 1, -1)
        inside = (rows(codes) + step >= grid.low) & (rows(codes) + step <= grid.high)
        second = nearest + step * rows(grid.scale)
    else:
        levels = np.unique(grid.book)
        at = np.searchsorted(levels, rows(grid.book[codes]))
        step = np.where(wanted > nearest, 1, -1)
        inside = (at + step >= 0) & (at + step < len(levels))
        second = levels[np.clip(at + step, 0, len(levels) - 1)] * rows(grid.scale)
    leak = nearest @ direction
    removed = np.where(inside, -np.sign(leak)[:, None] * direction * (second - nearest), 0)
    cost = (second - wanted) ** 2 - (nearest - wanted) ** 2
    useful = removed > 0
    price = np.where(useful, cost / np.where(useful, removed, 1), np.inf)
    order = np.argsort(price, 1)
    removed, cost = (np.take_along_axis(np.where(useful, v, 0), order, 1) for v in (removed, cost))
    need = np.abs(leak)[:, None] - (np.cumsum(removed, 1) - removed)
    share = np.clip(need / np.where(removed > 0, removed, 1), 0, 1)
    if (np.abs(leak) > removed.sum(1) * (1 + 1e-9)).any():
        return float("inf")
    before = ((nearest - wanted) ** 2).sum()
    return float(np.sqrt((before + (share * cost).sum()) / before)) if before else 1.0


def judged(base: Matrix, baked: Matrix, direction: np.ndarray) -> dict[str, float]:
    """The numbers of one changed matrix."""
    weight, now = base.grid.values(), baked.grid.values()
    target = projected(weight, base.axis, direction)
    nearest = base.grid.values(base.grid.nearest(target))
    before = float(np.linalg.norm(along(weight, base.axis, direction)))
    spacing = baked.grid.spacing(target)
    levels = np.abs(now - target) / np.where(spacing == 0, 1, spacing)
    regrown = dataclasses.replace(base.grid, scale=baked.grid.scale)
    regrown_error = float(np.linalg.norm(regrown.values(regrown.nearest(target)) - target))
    least = least_error(regrown, target, base.axis, direction)
    return {
        "bits": base.grid.bits, "before": before,
        "nearest": float(np.linalg.norm(along(nearest, base.axis, direction))) / max(before, 1e-300),
        "after": float(np.linalg.norm(along(now, base.axis, direction))) / max(before, 1e-300),
        "error": float(np.linalg.norm(now - target) / max(np.linalg.norm(nearest - target), 1e-300)),
        "over": float(np.linalg.norm(now - target) / max(regrown_error * least, 1e-300)),
        "relative": float(np.linalg.norm(now - target) / np.linalg.norm(target)),
        "levels": float(np.where(spacing == 0, np.abs(now - target) > 1e-12, levels).max()),
        "scales": float((base.grid.scale != baked.grid.scale).mean()),
    }


def changed(base: Matrix, baked: Matrix) -> bool:
    return any(not np.array_equal(getattr(base.grid, part), getattr(baked.grid, part))
               for part in ("codes", "scale", "zero"))


def others_of_scale(model: readers.Model, matrix: Matrix) -> list[str]:
    """The nodes that read the scale of a matrix for something else.

    Twins are none: ONNX Runtime's offline optimisation gives every reader of a dequantised value a DequantizeLinear
    (`.../duplicated`) of its own, on the same codes with the same scale. They all become what the first one becomes.
    """
    others = []
    for node, _ in model.consumers[matrix.stored[1]]:
        twin = node.op_type == "DequantizeLinear" and model.origin(node.input[0]) == matrix.stored[0]
        if node.name != matrix.node.name and not twin:
            others.append(node.name)
    return others[1:] if matrix.kind == "MatMulInteger" else others  # its scale is read by one Mul


# --- what else differs ------------------------------------------------------------------------------------------------

def raw(tensor: onnx.TensorProto) -> tuple:
    """All of a tensor but where it is stored."""
    return tuple(tensor.dims), tensor.data_type, numpy_helper.to_array(tensor).tobytes()


def added(node: onnx.NodeProto) -> bool:
    return node.name.startswith("lancet.")


def twins(model: onnx.ModelProto) -> dict[str, tuple]:
    """What each dequantised value is made of: of two that are made of the same, readers may be led to either."""
    return {node.output[0]: (tuple(node.input), tuple(a.SerializeToString(deterministic=True) for a in node.attribute))
            for node in model.graph.node if node.op_type == "DequantizeLinear"}


def differences(base: onnx.ModelProto, baked: onnx.ModelProto, allowed: set[str]) -> tuple[list[str], list[str]]:
    """(what differs and may not, float matrices that differ) outside the tensors of changed matrices."""
    wrong, floats = [], []
    new = {t.name: t for t in baked.graph.initializer}
    for tensor in base.graph.initializer:
        other = new.pop(tensor.name, None)
        if other is None:
            wrong.append(f"{tensor.name} is gone")
        elif raw(tensor) != raw(other) and tensor.name not in allowed:
            if tensor.data_type in readers.FLOATS and len(tensor.dims) > 0 and tensor.dims[:] == other.dims[:]:
                floats.append(tensor.name)
            else:
                wrong.append(f"{tensor.name} differs")
    wrong += [f"{name} is new" for name in new if not name.startswith("lancet.")]
    same_value = twins(base)
    ours = [n for n in baked.graph.node if not added(n)]
    if len(ours) != len(base.graph.node):
        return [*wrong, f"{len(ours)} nodes, not {len(base.graph.node)}"], floats
    for old, now in zip(base.graph.node, ours, strict=True):
        same = onnx.NodeProto()
        same.CopyFrom(now)
        for mine, its in ((same.input, old.input), (same.output, old.output)):
            for at, name in enumerate(mine):
                twin = at < len(its) and name in same_value and same_value[name] == same_value.get(its[at])
                if twin or ("lancet" in name and at < len(its)):
                    mine[at] = its[at]
        if same.SerializeToString(deterministic=True) != old.SerializeToString(deterministic=True):
            wrong.append(f"node {old.name} differs")
    return wrong, floats


def float_leak(base: onnx.ModelProto, baked: onnx.ModelProto, name: str, direction: np.ndarray) -> float:
    """How far a changed float matrix is from its exact edit, in roundings of its type."""
    old, now = (next(t for t in m.graph.initializer if t.name == name) for m in (base, baked))
    before, after = readers.array(old), readers.array(now)
    best = np.inf
    for axis in range(before.ndim):
        if before.shape[axis] == len(direction):
            target = projected(before, axis, direction)
            best = min(best, float(np.abs(after - target).max() / np.abs(before).max()))
    return best / ROUNDING[old.data_type]


# --- ONNX Runtime's own dequantisation --------------------------------------------------------------------------------

def run_alone(model: onnx.ModelProto, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto],
              feeds: dict[str, np.ndarray], output: str, kind: int) -> np.ndarray:
    inputs = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
              for k, v in feeds.items()]
    graph = helper.make_graph(nodes, "alone", inputs, [helper.make_tensor_value_info(output, kind, None)], constants)
    opsets = [*(o for o in model.opset_import if o.domain != "com.microsoft"), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=max(model.ir_version, 10))
    return session(made.SerializeToString()).run([output], feeds)[0]


def of_runtime(proto: onnx.ModelProto, matrix: Matrix) -> tuple[np.ndarray, np.ndarray] | None:
    """(what ONNX Runtime makes of a matrix, what the readers make of it), or None where it cannot be asked."""
    model, node, grid = readers.Model(proto), onnx.NodeProto(), matrix.grid
    node.CopyFrom(matrix.node)
    want = grid.values()

    def constants(names: list[str]) -> list[onnx.TensorProto]:
        out = []
        for name in dict.fromkeys(filter(None, names)):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(model.constant(name))
            tensor.name = name
            out.append(tensor)
        return out

    if matrix.kind in ("MatMulNBits", "MatMulBnb4"):
        scale = model.constant(node.input[2])
        if scale.data_type == TensorProto.BFLOAT16:
            return None
        kind = helper.tensor_dtype_to_np_dtype(scale.data_type)
        del node.input[5:]
        eye = np.eye(readers.attributes(node)["K"], dtype=kind)
        found = run_alone(proto, [node], constants(list(node.input[1:])), {node.input[0]: eye}, node.output[0],
                          scale.data_type)
    elif matrix.kind == "GatherBlockQuantized":
        scale = model.constant(node.input[2])
        feeds = {node.input[1]: np.arange(grid.codes.shape[0])}
        found = run_alone(proto, [node], constants([node.input[0], *node.input[2:]]), feeds, node.output[0],
                          scale.data_type)
    elif "DequantizeLinear" in matrix.kind:
        scale = model.constant(node.input[1])
        found = run_alone(proto, [node], constants(list(node.input)), {}, node.output[0], scale.data_type)
    elif matrix.kind == "QMoE":
        return moe_of_runtime(proto, matrix, model, constants)
    else:
        # MatMulInteger of an identity of bytes gives codes minus zero points, exactly; the scale is a Mul.
        alone = helper.make_node("MatMulInteger", ["eye", "b", "za", "zb"], ["y"])
        weight = onnx.TensorProto()
        weight.CopyFrom(model.constant(node.input[1]))
        weight.name = "b"
        zero = grid.zero[0].astype(helper.tensor_dtype_to_np_dtype(weight.data_type))
        parts = [weight, numpy_helper.from_array(np.uint8(0), "za"), numpy_helper.from_array(zero, "zb")]
        eye = np.eye(grid.codes.shape[0], dtype=np.uint8)
        found = run_alone(proto, [alone], parts, {"eye": eye}, "y", TensorProto.INT32) * grid.scale
    return found.astype(np.float64), want


def moe_of_runtime(proto, matrix: Matrix, model: readers.Model, constants) -> tuple[np.ndarray, np.ndarray] | None:
    """QMoE's fc2, asked with unit vectors through an fc1 that passes them on, one expert after another."""
    node, grid = matrix.node, matrix.grid
    scale = model.constant(node.input[6])
    if not matrix.key.endswith("fc2") or scale.data_type != TensorProto.FLOAT:
        return None
    experts, k, n = grid.codes.shape
    if k > n:
        return None
    bits, block = grid.bits, readers.attributes(node).get("block_size", 0)
    codes = np.full((experts, k, n), 2 ** (bits - 1))
    codes[:, np.arange(k), np.arange(k)] += 1
    scales = np.ones((experts, k, -(-n // block)) if block else (experts, k), np.float32)
    options = {"k": 1, "activation_type": "identity", "normalize_routing_weights": 1, "expert_weight_bits": bits}
    options.update({"block_size": block} if block else {})
    zero = node.input[12] if len(node.input) > 12 else ""
    alone = helper.make_node("QMoE", ["x", "router", "w1", "s1", "", node.input[5], node.input[6], *[""] * 5, zero],
                             ["y"], domain="com.microsoft", **options)
    parts = [numpy_helper.from_array(readers.pack(codes, bits), "w1"), numpy_helper.from_array(scales, "s1")]
    router = np.full((experts * k, experts), -50, np.float32)
    router[np.arange(experts * k), np.repeat(np.arange(experts), k)] = 50
    feeds = {"x": np.tile(np.eye(k, n, dtype=np.float32), (experts, 1)), "router": router}
    found = run_alone(proto, [alone], parts + constants([node.input[5], node.input[6], zero]), feeds, "y",
                      TensorProto.FLOAT)
    return found.reshape(experts, k, n).astype(np.float64), grid.values()


def readers_agree(proto: onnx.ModelProto, found: list[Matrix]) -> tuple[float, int]:
    """Largest difference to ONNX Runtime over all matrices, in roundings of its largest entry; how many asked."""
    worst, asked = 0.0, 0
    for matrix in found:
        pair = of_runtime(proto, matrix)
        if pair is None:
            continue
        rounding = 2 ** -10 if any(readers.Model(proto).constant(n) is not None and readers.Model(proto).constant(
            n).data_type == TensorProto.FLOAT16 for n in matrix.node.input) else 1e-6
        worst = max(worst, float(np.abs(pair[0] - pair[1]).max() / np.abs(pair[1]).max()) / rounding)
        asked += 1
    return worst, asked


# --- the baked file's logits against float values ---------------------------------------------------------------------

def in_float(proto: onnx.ModelProto, found: list[Matrix]) -> onnx.ModelProto:
    """The same graph with quantised matrices as their float values, and float operators that read them.

    Quantised activations (dynamic int8, static QDQ) stay as they are.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    model = readers.Model(proto)
    nodes = []
    floats: dict[str, onnx.TensorProto] = {}

    def keep(name: str, value: np.ndarray, kind: int) -> str:
        if kind == TensorProto.BFLOAT16:
            raise ValueError("bfloat16")
        floats[name] = numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(kind)), name)
        return name

    by_name = {m.key: m for m in found}
    for node in proto.graph.node:
        matrix = by_name.get(node.name or node.output[0])
        name = f"{node.name or node.output[0]}.float"
        kind = None
        if matrix is not None and matrix.kind != "QMoE":
            scale = matrix.stored[1]
            kind = model.tensors[scale].data_type if scale in model.tensors else TensorProto.FLOAT
        if node.op_type == "QMoE":
            nodes.append(moe_in_float(node, by_name, keep, model))
        elif matrix is None:
            nodes.append(node)
        elif node.op_type in ("MatMulNBits", "MatMulBnb4"):
            value = keep(name, matrix.grid.values(), kind)
            bias = node.input[5] if len(node.input) > 5 and node.op_type == "MatMulNBits" else ""
            out = f"{name}.product" if bias else node.output[0]
            nodes.append(helper.make_node("MatMul", [node.input[0], value], [out], node.name))
            if bias:
                nodes.append(helper.make_node("Add", [out, bias], [node.output[0]], f"{node.name}.bias"))
        elif node.op_type == "GatherBlockQuantized":
            value = keep(name, matrix.grid.values(), kind)
            nodes.append(helper.make_node("Gather", [value, node.input[1]], [node.output[0]], node.name, axis=0))
        elif matrix.kind == "Gather, DequantizeLinear":
            gather = model.producers[node.input[0]]
            value = keep(name, matrix.grid.values(), kind)
            nodes.append(helper.make_node("Gather", [value, gather.input[1]], [node.output[0]], node.name, axis=0))
        elif node.op_type == "DequantizeLinear":
            keep(node.output[0], matrix.grid.values(), kind)
        elif node.op_type == "MatMulInteger":
            # The product of integers is exact in float64.
            codes = keep(name, matrix.grid.codes - matrix.grid.zero, TensorProto.DOUBLE)
            a, z = f"{name}.a", f"{name}.z"
            nodes += [helper.make_node("Cast", [node.input[0]], [a], to=TensorProto.DOUBLE),
                      helper.make_node("Cast", [node.input[2]], [z], to=TensorProto.DOUBLE),
                      helper.make_node("Sub", [a, z], [f"{name}.less"]),
                      helper.make_node("MatMul", [f"{name}.less", codes], [f"{name}.product"]),
                      helper.make_node("Cast", [f"{name}.product"], [node.output[0]], to=TensorProto.INT32)]
        else:  # DynamicQuantizeMatMul, MatMulIntegerToFloat
            value = keep(name, matrix.grid.values(), TensorProto.FLOAT)
            if node.op_type == "DynamicQuantizeMatMul":
                q, s, z = f"{name}.q", f"{name}.s", f"{name}.z"
                nodes.append(helper.make_node("DynamicQuantizeLinear", [node.input[0]], [q, s, z]))
                bias = node.input[4] if len(node.input) > 4 else ""
            else:
                q, s = node.input[0], node.input[2]
                z = node.input[4]
                bias = node.input[6] if len(node.input) > 6 else ""
            out = f"{name}.product" if bias else node.output[0]
            nodes += [helper.make_node("DequantizeLinear", [q, s, z], [f"{name}.a"]),
                      helper.make_node("MatMul", [f"{name}.a", value], [out], node.name)]
            if bias:
                nodes.append(helper.make_node("Add", [out, bias], [node.output[0]]))
    left = [n.name for n in nodes if n.op_type in QUANTISED]
    if left:
        raise ValueError(f"not replaced: {left}")
    used = {i for n in nodes for i in n.input}
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    keep_initializers = [t for t in made.graph.initializer if t.name in used and t.name not in floats]
    del made.graph.initializer[:]
    made.graph.initializer.extend([*keep_initializers, *floats.values()])
    return made


def moe_in_float(node: onnx.NodeProto, by_name: dict[str, Matrix], keep, model: readers.Model) -> onnx.NodeProto:
    kind = model.tensors[node.input[3]].data_type
    inputs = [node.input[0], node.input[1]]
    for number, bias in ((1, 4), (2, 7), (3, 10)):
        matrix = by_name.get(f"{node.name} fc{number}")
        has_bias = len(node.input) > bias and node.input[bias]
        inputs += [keep(f"{node.name}.fc{number}.float", np.swapaxes(matrix.grid.values(), 1, 2), kind)
                   if matrix else "", node.input[bias] if has_bias else ""]
    while not inputs[-1]:
        inputs.pop()
    known = ("activation_alpha", "activation_beta", "activation_type", "k", "normalize_routing_weights",
             "swiglu_fusion", "swiglu_limit", "use_sparse_mixer")
    made = helper.make_node("MoE", inputs, list(node.output), node.name, domain="com.microsoft")
    made.attribute.extend(a for a in node.attribute if a.name in known)
    return made


def full_precision(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that asks for float activations: accuracy_level allows the provider to round them to 8 bits."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for node in made.graph.node:
        kept = [a for a in node.attribute if a.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return made


# --- one pair ---------------------------------------------------------------------------------------------------------

def judge(name: str, base_path: pathlib.Path, baked_path: pathlib.Path, direction: np.ndarray, ids: np.ndarray | None,
          head: int, quantised: int | None, note: str = "", runs: bool = True,
          nearest_path: pathlib.Path | None = None, unread: bool = False) -> list[str]:
    """Print the table of one pair; returns what is wrong with it. `unread`: some layouts are left to nodes unread."""
    direction = direction.astype(np.float64) / np.linalg.norm(direction.astype(np.float64))
    base, baked = onnx.load(str(base_path)), onnx.load(str(baked_path))
    before, after = readers.matrices(base, unread), {m.key: m for m in readers.matrices(baked, unread)}
    wrong, allowed, moved = [], set(), []
    for matrix in before:
        other = after.get(matrix.key)
        if other is None:
            wrong.append(f"{matrix.key}: no longer there")
        elif changed(matrix, other):
            moved.append((matrix, other))
            allowed |= set(matrix.stored[:2])
            shared = others_of_scale(readers.Model(base), matrix)
            rescaled = not np.array_equal(matrix.grid.scale, other.grid.scale)
            if rescaled and matrix.stored[1] == other.stored[1] and shared:
                wrong.append(f"{matrix.key}: its scale changed, which {shared} read too")
    groups = {n.name.rsplit(".", 1)[0] for n in baked.graph.node if added(n)}
    others, floats = differences(base, baked, allowed)
    wrong += others
    for matrix, other in moved:
        if not np.array_equal(matrix.grid.padding, other.grid.padding):
            wrong.append(f"{matrix.key}: padding differs")
        if matrix.grid.zero is not None and not np.array_equal(matrix.grid.zero, other.grid.zero):
            wrong.append(f"{matrix.key}: zero points differ")
        if matrix.grid.codes.shape[matrix.axis] != len(direction):
            wrong.append(f"{matrix.key}: changed, and no writer")
            continue
        row = judged(matrix, other, direction)
        bits = int(row["bits"])
        failed = [what for what, bad in (
            ("leak", row["after"] > LEAK[bits]),
            ("error", row["error"] > ERROR.get(bits, np.inf) and (bits == 8 or len(direction) <= ATTAINABLE)),
            ("over least", len(direction) >= WIDE and row["over"] > OVER_LEAST.get(bits, np.inf)),
            ("levels", row["levels"] > 1 + 1e-9)) if bad]
        wrong += [f"{matrix.key}: {what}" for what in failed]
        print(f"  {matrix.key[-44:]:44s} {matrix.kind[:22]:22s} {bits} bits  leak {row['before']:8.3g}  "
              f"nearest {row['nearest']:7.1e}  after {row['after']:7.1e}  "
              f"error x{row['error']:5.3f} (x{row['over']:5.3f} of the least) "
              f"{100 * row['relative']:5.2f} %  levels {row['levels']:5.3f}  scales {100 * row['scales']:3.0f} %"
              f"{'  FAILED ' + ', '.join(failed) if failed else ''}")
    for tensor in floats:
        roundings = float_leak(base, baked, tensor, direction)
        print(f"  {tensor[-44:]:44s} float, {roundings:.2g} roundings off the exact edit")
        if roundings > 4:
            wrong.append(f"{tensor}: {roundings:.1g} roundings off its edit")
    for group in sorted(groups):
        print(f"  {group[-44:]:44s} nodes, exact")
    if quantised is not None and len(moved) + len(groups) < quantised:
        wrong.append(f"{len(moved)} quantised matrices changed and {len(groups)} got nodes, of {quantised} writers")
    agree, asked = readers_agree(base, before) if runs else (0.0, 0)
    if agree > 8 and "ignores" not in note:
        wrong.append(f"the readers are {agree:.1e} roundings off ONNX Runtime's operators")
    line = f"  readers {agree:.2g} roundings off ONNX Runtime over {asked} of {len(before)} matrices"
    if runs and ids is not None:
        line += logits_line(baked, list(after.values()), ids, head, wrong, note)
    print(line)
    if nearest_path is not None:
        write_nearest(base, baked, moved, direction, nearest_path)
    return [f"{name}: {text}" for text in wrong]


def logits_line(baked: onnx.ModelProto, found: list[Matrix], ids: np.ndarray, head: int, wrong: list[str],
                note: str) -> str:
    """How far the baked file's logits are from those of its float values; what is wrong is added to `wrong`."""
    # Unoptimised: the provider turns DequantizeLinear before MatMul into MatMulNBits with activations of 8 bits.
    got = logits(full_precision(baked).SerializeToString(), ids, head, optimise=False)
    want = logits(in_float(baked, found).SerializeToString(), ids, head, optimise=False)
    gap = float(np.abs(got - want).max())
    half = any(t.data_type == TensorProto.FLOAT16 for t in baked.graph.initializer)
    # Where activations are rounded to 8 bits inside the operator, float values only come near.
    rounded = any(n.op_type == "QMoE" and readers.attributes(n).get("expert_weight_bits", 4) == 8
                  and readers.attributes(n).get("block_size", 0) for n in baked.graph.node)
    steps = any(n.op_type in ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear")
                for n in baked.graph.node)
    bound = 0.1 if rounded or steps else 0.05 if half else 1e-3
    if not gap <= bound * max(1.0, float(want.std())) and "ignores" not in note:
        wrong.append(f"logits are {gap:.1e} off those of the float values")
    return f"; logits {gap:.1e} off those of its float values (std {want.std():.2f})"


def write_nearest(base: onnx.ModelProto, baked: onnx.ModelProto, moved: list[tuple[Matrix, Matrix]],
                  direction: np.ndarray, path: pathlib.Path) -> None:
    """The baked file with every changed matrix at the nearest levels of the base's grid, scales as in the base."""
    made = onnx.ModelProto()
    made.CopyFrom(baked)
    for matrix, other in moved:
        target = projected(matrix.grid.values(), matrix.axis, direction)
        readers.store(made, other, matrix.grid.nearest(target))
        old, new = (next(t for t in m.graph.initializer if t.name == of.stored[1])
                    for m, of in ((base, matrix), (made, other)))
        name = new.name
        new.CopyFrom(old)
        new.name = name
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(made, str(path))


# --- all --------------------------------------------------------------------------------------------------------------

def bake(lancet: list[str], model: pathlib.Path, direction: pathlib.Path, out: pathlib.Path) -> str | None:
    """Run lancet; None or what it said."""
    shutil.rmtree(out, ignore_errors=True)
    command = [*lancet[:1], "bake", model, "--direction", direction, "--output", out, "--quiet", *lancet[1:]]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip()


def chat_direction() -> np.ndarray:
    """The direction that the bundled reference selects at lambda 1 (position -1, layer 2)."""
    return load_file(FIXTURES / "chat" / "reference.safetensors")["direction.lambda_1"][-1, 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lancet", type=pathlib.Path)
    parser.add_argument("--lancet-args", type=shlex.split, default=[], help="more for `lancet bake`")
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--chat", action="store_true", help="the chat package and the genai folder too")
    parser.add_argument("--write-nearest", type=pathlib.Path)
    parser.add_argument("--base", type=pathlib.Path)
    parser.add_argument("--baked", type=pathlib.Path)
    parser.add_argument("--direction", type=pathlib.Path)
    args = parser.parse_args()
    wrong: list[str] = []
    if args.base:
        direction = load_file(args.direction)["direction"]
        print(args.base)
        wrong = judge(args.base.name, args.base, args.baked, direction, None, HEAD, None,
                      nearest_path=args.write_nearest and args.write_nearest / args.base.name)
    else:
        lancet = [str(args.lancet), *args.lancet_args]
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "out"
            for entry in json.loads((QUANT / "index.json").read_text()):
                if entry["file"] is not None and (not args.only or entry["name"] in args.only):
                    wrong += judge_entry(entry, lancet, out, args.write_nearest)
            if args.chat:
                save_file({"direction": chat_direction()}, pathlib.Path(folder) / "direction.safetensors")
                wrong += judge_chat(lancet, out, pathlib.Path(folder) / "direction.safetensors", args)
    print(f"\n{len(wrong)} violations")
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


def judge_entry(entry: dict, lancet: list[str], out: pathlib.Path, nearest: pathlib.Path | None) -> list[str]:
    base = QUANT / entry["file"]
    print(f"\n{entry['name']}  ({entry['format']}, {entry['config']})")
    direction_file = QUANT / "direction.safetensors"
    wrong = refusals(entry, lancet, base, direction_file, out) if entry.get("refuse") else []
    complaint = bake(lancet, base, direction_file, out)
    if entry.get("refuse") and (complaint is not None or "--quantised" in lancet):
        # refused with the mode that the caller gave, which `refusals` has looked at
        return wrong
    if complaint is not None:
        return [f"{entry['name']}: {complaint.splitlines()[0] if complaint else 'failed'}"]
    ids = load_file(QUANT / "input_ids.safetensors")["input_ids"]
    direction = load_file(direction_file)["direction"]
    unread = bool(entry.get("refuse"))
    try:
        return wrong + judge(entry["name"], base, out / base.name, direction, ids, HEAD, entry["quantised_writers"],
                             entry.get("note", ""), entry["run"] and not unread, nearest and nearest / entry["file"],
                             unread)
    except Exception as error:
        return [f"{entry['name']}: the judge failed: {type(error).__name__}: {error}"]


def refusals(entry: dict, lancet: list[str], base: pathlib.Path, direction: pathlib.Path,
             out: pathlib.Path) -> list[str]:
    """What is wrong with the refusals of a file that cannot be rounded.

    A weight in a layout that is not read is refused where rounding is asked for; by default its write is projected by
    nodes, which is exact. A stream of integers (QLinearMatMul, QLinearAdd) is refused whatever is asked for.
    """
    names = [n.name for n in onnx.load(str(base), load_external_data=False).graph.node if n.name]
    everywhere = entry["format"].startswith("QLinear")
    wrong = []
    for mode in ("round", "auto", "nodes") if everywhere else ("round",):
        complaint = bake([lancet[0], "--quantised", mode], base, direction, out)
        if complaint is None:
            wrong.append(f"{entry['name']}: baked with --quantised {mode}, and should have been refused")
            continue
        print(f"  {mode}: {complaint.splitlines()[0]}")
        if not any(n in complaint for n in names):
            wrong.append(f"{entry['name']}: refused with --quantised {mode} without the node's name")
    return wrong


def judge_chat(lancet: list[str], out: pathlib.Path, direction: pathlib.Path, args: argparse.Namespace) -> list[str]:
    files = [*sorted((FIXTURES / "chat-package" / "onnx").glob("*.onnx")), FIXTURES / "chat-genai-int4" / "model.onnx"]
    wrong = []
    for base in files:
        name = f"{base.parent.parent.name if base.parent.name == 'onnx' else base.parent.name}/{base.name}"
        if args.only and base.stem not in args.only and name not in args.only:
            continue
        print(f"\n{name}")
        complaint = bake(lancet, base, direction, out)
        if complaint is not None:
            wrong.append(f"{name}: {complaint.splitlines()[0] if complaint else 'failed'}")
            continue
        embedding = "int8" in base.name or "quantized" in base.name
        wrong += judge(name, base, out / base.name, load_file(direction)["direction"], np.array([[1, *range(20, 60)]]),
                       32 if "genai" in name else 24, 12 + embedding,
                       nearest_path=args.write_nearest and args.write_nearest / name)
    return wrong


if __name__ == "__main__":
    main()
