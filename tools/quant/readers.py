"""Readers of quantised matrices, from the operators' specifications, in numpy float64.

Every reader returns a `Grid`: the integer codes in the logical shape of the matrix, and what they stand for. The
last but one axis of `Grid.codes` holds the inputs of the matrix (K), the last one its outputs (N), so that y = x W;
an embedding is [tokens, width]. Leading axes are experts. check.py judges with these; nothing here comes from Lancet.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

# bitsandbytes' code books: the value of each of the 16 codes, as ONNX Runtime has them.
NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                0.7229568362236023, 1.0], np.float32).astype(np.float64)
FP4 = np.array([0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25,
                -0.0, -5.208333333e-03, -0.66666667, -1.0, -0.33333333, -0.5, -0.16666667, -0.25],
               np.float32).astype(np.float64)
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
RANGES = {onnx.TensorProto.INT4: (-8, 7), onnx.TensorProto.UINT4: (0, 15), onnx.TensorProto.INT8: (-128, 127),
          onnx.TensorProto.UINT8: (0, 255), onnx.TensorProto.INT2: (-2, 1), onnx.TensorProto.UINT2: (0, 3)}


@dataclasses.dataclass
class Grid:
    """A quantised matrix: W = book[codes] * scale with a code book, else (codes - zero) * scale.

    `scale` and `zero` have the shape of `codes`. `low` and `high` bound the codes. `bits` is the width of a code.
    `padding` holds the codes of the file that belong to no entry (K padded up to the block).
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    low: int
    high: int
    bits: int
    book: np.ndarray | None = None
    padding: np.ndarray | None = None

    def values(self, codes: np.ndarray | None = None) -> np.ndarray:
        """The matrix that `codes` (its own) stand for, in float64."""
        codes = self.codes if codes is None else codes
        if self.book is not None:
            return self.book[codes] * self.scale
        return (codes - self.zero) * self.scale

    def nearest(self, target: np.ndarray) -> np.ndarray:
        """The codes whose values are nearest to a float64 matrix."""
        if self.book is not None:
            order = np.argsort(self.book, kind="stable")
            middle = (self.book[order][1:] + self.book[order][:-1]) / 2
            return order[np.searchsorted(middle, target / np.where(self.scale == 0, 1, self.scale))]
        ratio = target / np.where(self.scale == 0, 1, self.scale) + self.zero
        return np.clip(np.rint(ratio), self.low, self.high).astype(np.int64)

    def spacing(self, target: np.ndarray) -> np.ndarray:
        """The distance between the two levels around each entry of a matrix (the outermost two beyond the ends)."""
        if self.book is None:
            return np.abs(self.scale)
        levels = np.unique(self.book)
        ratio = target / np.where(self.scale == 0, 1, self.scale)
        at = np.clip(np.searchsorted(levels, ratio), 1, len(levels) - 1)
        return (levels[at] - levels[at - 1]) * np.abs(self.scale)


def array(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor as float64 or int64, whatever its type."""
    value = numpy_helper.to_array(tensor)
    return value.astype(np.float64 if tensor.data_type in FLOATS else np.int64)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Unpack the last axis of bytes into codes of 2, 4 or 8 bits, low bits first."""
    packed = packed.astype(np.int64)
    per = 8 // bits
    parts = [(packed >> (bits * i)) & ((1 << bits) - 1) for i in range(per)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], -1)


def attributes(node: onnx.NodeProto) -> dict:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


Get = Callable[[str], onnx.TensorProto | None]


def optional(node: onnx.NodeProto, at: int, get: Get) -> onnx.TensorProto | None:
    return get(node.input[at]) if len(node.input) > at and node.input[at] else None


def block_zeros(zero: onnx.TensorProto | None, rows: int, blocks: int, bits: int) -> np.ndarray:
    """Zero points [rows, blocks]: packed bytes (each row padded to a byte), floats, or the default."""
    if zero is None:
        return np.full((rows, blocks), 2.0 ** (bits - 1))
    value = array(zero)
    if zero.data_type == onnx.TensorProto.UINT8:
        return unpack(value.reshape(rows, -1), bits)[:, :blocks].astype(np.float64)
    return value.reshape(rows, blocks)


def matmul_nbits(node: onnx.NodeProto, get: Get) -> Grid:
    """MatMulNBits: B [N, blocks, block * bits / 8] along K, scales [N, blocks] or flat, y = x W."""
    a = attributes(node)
    bits, block, k, n = a.get("bits", 4), a["block_size"], a["K"], a["N"]
    if a.get("weight_prepacked", 0):
        raise ValueError(f"{node.name}: prepacked for a GPU")
    blocks = -(-k // block)
    codes = unpack(array(get(node.input[1])).reshape(n, blocks * block * bits // 8), bits)
    scale = array(get(node.input[2])).reshape(n, blocks)
    zero = block_zeros(optional(node, 3, get), n, blocks, bits)
    index = optional(node, 4, get)
    at = np.arange(k) // block if index is None else array(index)[:k]
    return Grid(codes[:, :k].T, scale[:, at].T, zero[:, at].T, 0, 2 ** bits - 1, bits, padding=codes[:, k:])


def matmul_bnb4(node: onnx.NodeProto, get: Get) -> Grid:
    """MatMulBnb4: the transposed matrix [N, K] flattened; high nibble first; absmax a block of the flat order."""
    a = attributes(node)
    block, k, n = a["block_size"], a["K"], a["N"]
    packed = array(get(node.input[1])).reshape(-1)
    flat = np.stack([packed >> 4, packed & 15], -1).reshape(-1)
    scale = np.repeat(array(get(node.input[2])).reshape(-1), block)[: n * k]
    return Grid(flat[: n * k].reshape(n, k).T, scale.reshape(n, k).T, None, 0, 15, 4,
                NF4 if a["quant_type"] == 1 else FP4, flat[n * k:])


def dequantize_linear(node: onnx.NodeProto, get: Get) -> Grid:
    """DequantizeLinear of a constant, in the tensor's own axes."""
    a = attributes(node)
    x, s, z = get(node.input[0]), get(node.input[1]), optional(node, 2, get)
    codes, scale = array(x), array(s)
    zero = np.zeros(scale.shape) if z is None else array(z).astype(np.float64)
    low, high = RANGES[x.data_type]
    axis, block = a.get("axis", 1), a.get("block_size", 0)

    def spread(value: np.ndarray) -> np.ndarray:
        if block:
            wide = np.repeat(value, block, axis)
            return wide.take(np.arange(codes.shape[axis]), axis)
        if value.size == 1:
            return np.broadcast_to(value.reshape(()), codes.shape)
        shape = [1] * codes.ndim
        shape[axis] = value.size
        return np.broadcast_to(value.reshape(shape), codes.shape)

    return Grid(codes, spread(scale), spread(zero), low, high, {4: 4, 16: 4, 256: 8}[high - low + 1])


def matmul_integer(weight: onnx.TensorProto, scale: onnx.TensorProto, zero: onnx.TensorProto | None) -> Grid:
    """MatMulInteger, DynamicQuantizeMatMul, MatMulIntegerToFloat: B [K, N], scale and zero point scalar or [N]."""
    codes = array(weight)
    low, high = RANGES[weight.data_type]
    s = np.broadcast_to(array(scale).reshape(-1), (codes.shape[-1],))
    z = np.zeros(1) if zero is None else array(zero).astype(np.float64).reshape(-1)
    return Grid(codes, np.broadcast_to(s, codes.shape), np.broadcast_to(z, codes.shape), low, high, 8)


def gather_block_quantized(node: onnx.NodeProto, get: Get) -> Grid:
    """GatherBlockQuantized: int4/uint4 in the tensor's axes, or uint8 that holds 2, 4 or 8 bits (low bits first)."""
    a = attributes(node)
    data, scales, z = get(node.input[0]), get(node.input[2]), optional(node, 3, get)
    scale = array(scales)
    # The schema's defaults: gather_axis 0, quantize_axis 1, block_size 128, bits 4.
    axis, block = a.get("quantize_axis", 1) % len(data.dims), a.get("block_size", 128)
    if data.data_type == onnx.TensorProto.UINT8:
        bits = a.get("bits", 4)
        codes = unpack(array(data), bits)
        low, high, default = 0, 2 ** bits - 1, 2.0 ** (bits - 1)
        zero = None if z is None else unpack(array(z), bits)
        if zero is not None:
            zero = zero[..., : scale.shape[-1]]
    else:
        codes, bits, default = array(data), 4, 0.0
        low, high = RANGES[data.data_type]
        zero = None if z is None else array(z)
    zero = np.full(scale.shape, default) if zero is None else zero.astype(np.float64)
    at = np.arange(codes.shape[axis]) // block
    return Grid(codes, scale.take(at, axis), zero.take(at, axis), low, high, bits)


def qmoe(node: onnx.NodeProto, get: Get, matrix: int) -> Grid:
    """QMoE's fc1, fc2 or fc3 (`matrix` 1, 2, 3) as [experts, K, N]; raw layout [experts, N, K * bits / 8]."""
    a = attributes(node)
    if a.get("quant_type", b"int") != b"int":
        raise ValueError(f"{node.name}: {a['quant_type']}")
    at = {1: (2, 3, 11), 2: (5, 6, 12), 3: (8, 9, 13)}[matrix]
    bits = a.get(f"fc{matrix}_expert_weight_bits", a.get("expert_weight_bits", 4))
    codes = unpack(array(get(node.input[at[0]])), bits)
    experts, n, k = codes.shape
    block = a.get("block_size", 0) or k
    blocks = -(-k // block)
    scale = array(get(node.input[at[1]])).reshape(experts, n, blocks)
    zeros = optional(node, at[2], get)
    if zeros is None:
        zero = np.full(scale.shape, 2.0 ** (bits - 1))
    elif blocks == 1 and len(zeros.dims) == 2:
        zero = unpack(array(zeros), bits)[:, :n].reshape(scale.shape).astype(np.float64)
    else:
        zero = unpack(array(zeros), bits)[..., :blocks].astype(np.float64)
    index = np.arange(k) // block
    return Grid(codes.transpose(0, 2, 1), scale[..., index].transpose(0, 2, 1), zero[..., index].transpose(0, 2, 1),
                0, 2 ** bits - 1, bits)


@dataclasses.dataclass
class Matrix:
    """A quantised matrix of a model: the node that reads it, what it holds, and where that is stored.

    `axis` is the axis of the grid that a write to the residual stream would run along. `stored` names the tensors of
    codes, scales and zero points; `order` turns the grid's codes into the order in which they are stored.
    """

    key: str
    node: onnx.NodeProto
    kind: str
    grid: Grid
    axis: int
    stored: list[str]
    order: Callable[[np.ndarray], np.ndarray]


class Model:
    """A model with its constants by name, seen through Reshape, Transpose and Identity of constants."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.tensors = {t.name: t for t in proto.graph.initializer}
        self.producers = {o: n for n in proto.graph.node for o in n.output if o}
        self.consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in proto.graph.node:
            for at, name in enumerate(node.input):
                self.consumers.setdefault(name, []).append((node, at))

    def constant(self, name: str) -> onnx.TensorProto | None:
        if name in self.tensors:
            return self.tensors[name]
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type not in ("Reshape", "Identity", "Transpose"):
            return None
        source = self.constant(node.input[0])
        if source is None or node.op_type == "Identity":
            return source
        if node.op_type == "Reshape":
            shape = array(self.constant(node.input[1]))
            made = onnx.TensorProto()
            made.CopyFrom(source)
            size = int(np.prod(source.dims))
            fixed = [int(source.dims[i]) if d == 0 else int(d) for i, d in enumerate(shape)]
            rest = int(np.prod([d for d in fixed if d > 0]))
            made.dims[:] = [size // rest if d < 0 else d for d in fixed]
            return made
        value = numpy_helper.to_array(source)
        return numpy_helper.from_array(np.ascontiguousarray(value.transpose(attributes(node).get("perm"))), source.name)

    def origin(self, name: str) -> str:
        """The initializer behind a name."""
        while name not in self.tensors and name in self.producers and self.producers[name].input:
            name = self.producers[name].input[0]
        return name

    def ahead(self, name: str, *kinds: str) -> tuple[onnx.NodeProto, int] | None:
        """The first consumer of a value of one of the kinds, passing Cast and Mul."""
        todo = [name]
        while todo:
            for node, at in self.consumers.get(todo.pop(0), []):
                if node.op_type in kinds:
                    return node, at
                if node.op_type in ("Cast", "Mul"):
                    todo.append(node.output[0])
        return None


def matrices(proto: onnx.ModelProto, leave_unread: bool = False) -> list[Matrix]:
    """Every quantised matrix of a model; raises on a layout that only a GPU's kernel knows, or leaves it out."""
    model, found = Model(proto), []
    get = model.constant

    def add(node: onnx.NodeProto, kind: str, grid: Grid, axis: int, stored: list[str], order: Callable,
            suffix: str = "") -> None:
        names = [model.origin(name) for name in stored if name]
        found.append(Matrix((node.name or node.output[0]) + suffix, node, kind, grid, axis, names, order))

    def same(codes: np.ndarray) -> np.ndarray:
        return codes

    def swapped(codes: np.ndarray) -> np.ndarray:
        return codes.swapaxes(-1, -2)

    for node in proto.graph.node:
        inputs = list(node.input) + [""] * 20
        kind = node.op_type
        if leave_unread and attributes(node).get("weight_prepacked", 0):
            continue
        if kind == "MatMulNBits" and get(inputs[1]) is not None:
            add(node, kind, matmul_nbits(node, get), -1, inputs[1:5], swapped)
        elif kind == "MatMulBnb4" and get(inputs[1]) is not None:
            add(node, kind, matmul_bnb4(node, get), -1, inputs[1:3], swapped)
        elif kind == "QMoE":
            for number, at in ((1, (2, 3, 11)), (2, (5, 6, 12)), (3, (8, 9, 13))):
                if inputs[at[0]]:
                    add(node, kind, qmoe(node, get, number), -1, [inputs[i] for i in at], swapped, f" fc{number}")
        elif kind == "GatherBlockQuantized":
            add(node, kind, gather_block_quantized(node, get), -1, [inputs[0], inputs[2], inputs[3]], same)
        elif kind == "MatMulInteger" and get(inputs[1]) is not None:
            # quantize_dynamic: Mul(scale of A, scale of B) multiplies the product.
            product, _ = model.ahead(node.output[0], "Mul")
            scales = next(model.producers[i] for i in product.input
                          if i in model.producers and model.producers[i].op_type == "Mul")
            scale = next(i for i in scales.input if get(i) is not None)
            zero = get(inputs[3]) if inputs[3] else None
            add(node, kind, matmul_integer(get(inputs[1]), get(scale), zero), -1, [inputs[1], scale, inputs[3]], same)
        elif kind == "DynamicQuantizeMatMul" and get(inputs[1]) is not None:
            zero = get(inputs[3]) if inputs[3] else None
            add(node, kind, matmul_integer(get(inputs[1]), get(inputs[2]), zero), -1, inputs[1:4], same)
        elif kind == "MatMulIntegerToFloat" and get(inputs[1]) is not None:
            zero = get(inputs[5]) if inputs[5] else None
            add(node, kind, matmul_integer(get(inputs[1]), get(inputs[3]), zero), -1,
                [inputs[1], inputs[3], inputs[5]], same)
        elif kind == "DequantizeLinear":
            add_dequantised(model, node, add)
    return found


def add_dequantised(model: Model, node: onnx.NodeProto, add: Callable) -> None:
    """A DequantizeLinear of a constant matrix, or of rows that a Gather took from one."""
    gather = model.producers.get(node.input[0])
    if gather is not None and gather.op_type == "Gather" and model.constant(gather.input[0]) is not None:
        direct = onnx.NodeProto()
        direct.CopyFrom(node)
        direct.input[0] = gather.input[0]
        if len(model.constant(gather.input[0]).dims) == 2:
            add(direct, "Gather, DequantizeLinear", dequantize_linear(direct, model.constant), -1, list(direct.input),
                lambda codes: codes)
        return
    x = model.constant(node.input[0])
    if x is None or len(x.dims) != 2:
        return
    user = model.ahead(node.output[0], "MatMul", "Gemm", "Transpose", "Gather")
    if user is None:
        return
    flipped = user[0].op_type == "Transpose" or bool(attributes(user[0]).get("transB", 0))
    stored = model.producers.get(node.input[0])
    through = stored is not None and stored.op_type == "Transpose"
    order = (lambda codes: codes.T) if through else (lambda codes: codes)
    add(node, f"DequantizeLinear, {user[0].op_type}", dequantize_linear(node, model.constant), 0 if flipped else -1,
        list(node.input), order)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 2, 4 or 8 bits into bytes along the last axis, low bits first."""
    per = 8 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per)])
    parts = codes.reshape(*codes.shape[:-1], -1, per).astype(np.int64)
    return sum(parts[..., i] << (bits * i) for i in range(per)).astype(np.uint8)


def store(model: onnx.ModelProto, matrix: Matrix, codes: np.ndarray) -> None:
    """Put other codes into the tensor of a matrix, in its own packing; padding stays."""
    tensor = next(t for t in model.graph.initializer if t.name == matrix.stored[0])
    codes, bits = matrix.order(codes), matrix.grid.bits
    if matrix.kind == "MatMulNBits":
        raw = pack(np.concatenate([codes, matrix.grid.padding], 1), bits)
    elif matrix.kind == "MatMulBnb4":
        flat = np.concatenate([codes.reshape(-1), matrix.grid.padding])
        raw = (flat[0::2] << 4 | flat[1::2]).astype(np.uint8)
    elif matrix.kind == "QMoE" or (matrix.kind == "GatherBlockQuantized"
                                   and tensor.data_type == onnx.TensorProto.UINT8):
        raw = pack(codes, bits)
    elif bits == 4:
        raw = pack((codes & 15).reshape(-1), 4)
    else:
        raw = codes.astype(np.int8 if tensor.data_type == onnx.TensorProto.INT8 else np.uint8)
    data = np.ascontiguousarray(raw).tobytes()
    if len(data) != len(numpy_helper.to_array(tensor).tobytes()) and bits == 8:
        raise ValueError(f"{matrix.key}: {len(data)} bytes")
    tensor.ClearField("int32_data")
    tensor.raw_data = data
