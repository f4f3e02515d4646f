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
