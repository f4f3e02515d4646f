"""Judge the rounding of quantised weights for several directions at once, and write the table into docs/quantised.md.

  python tools/quant/several.py --lancet target/release/lancet [--widths 576 1024] [--columns 128]

For each width a random matrix (normal, standard deviation 0.02) that ONNX Runtime's MatMulNBitsQuantizer has brought to 4 and
to 8 bits (block 32, symmetric) is baked by one to four random orthonormal directions, the rows of `Q`. In numpy float64,
from the stored codes and scales: what is left along each direction, of the component that was to be removed; the error
`||W' - (W - Q^T Q W)||` over that of nearest rounding; the largest distance of an entry from its exact value in levels; and
the error over the least that any rounding to that grid can have which leaves nothing along the directions and keeps each
entry within a level of its exact value. That least one is the optimum of a linear program in which an entry may lie anywhere
between its two levels, solved column by column by scipy's HiGHS, for the first columns of each matrix.

The table stands between `<!-- several -->` and `<!-- end -->`. Runs in environment A of tools/zoo/README.md with scipy 1.17.1.
Exits with 1 where a leak is above 0.1 %, an entry more than a level off, or the error more than 5 % above the least.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import readers
import table
from common import ROOT
from safetensors.numpy import save_file
from scipy.optimize import linprog

BITS, COUNTS = (4, 8), (1, 2, 3, 4)


def make_model(folder: pathlib.Path, width: int, bits: int) -> pathlib.Path:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    sys.path.insert(0, str(ROOT / "tools" / "bench"))
    import bake as bench
    for name, value in (("LAYERS", 1), ("WIDTH", width), ("INNER", 256), ("VOCAB", 64), ("HEADS", width // 64)):
        setattr(bench, name, value)
    plain, path = folder / "plain.onnx", folder / f"w{width}-{bits}.onnx"
    bench.make_model(plain, 0)
    quantizer = MatMulNBitsQuantizer(onnx.load(str(plain)), bits=bits, block_size=32, is_symmetric=True)
    quantizer.process()
    onnx.save(quantizer.model.model, str(path))
    return path


def rows(value: np.ndarray, like: np.ndarray, axis: int) -> np.ndarray:
    """The columns of a matrix, `[columns, d_model]`."""
    return np.moveaxis(np.broadcast_to(value, like.shape), axis, -1).reshape(-1, like.shape[axis])


def least_error(wanted: np.ndarray, codes: np.ndarray, grid: readers.Grid, scale: np.ndarray, zero: np.ndarray,
                basis: np.ndarray) -> float:
    """The least squared error of one column `wanted`, `[d_model]`, whose nearest codes are given."""
    unit = np.abs(scale).mean()  # the solver wants numbers near 1
    scale, wanted = scale / unit, wanted / unit
    nearest = (codes - zero) * scale
    towards = np.sign(wanted - nearest)
    free = (codes + towards * np.sign(scale) >= grid.low) & (codes + towards * np.sign(scale) <= grid.high) & (scale != 0)
    step, delta = np.abs(scale), nearest - wanted
    cost = np.where(free, step * (step - 2 * np.abs(delta)), 0)
    found = linprog(np.maximum(cost, 0), A_eq=basis * np.where(free, towards * step, 0), b_eq=-basis @ delta,
                    bounds=[(0, 1 if one else 0) for one in free], method="highs")
    if found.status:
        raise RuntimeError(found.message)
    return float((delta ** 2).sum() + found.fun) * unit ** 2


def judged(base: readers.Matrix, baked: readers.Matrix, basis: np.ndarray, columns: int) -> dict[str, float]:
    """The numbers of one rounded matrix."""
    weight, now = base.grid.values(), baked.grid.values()
    flat = lambda value: rows(value, weight, base.axis)
    target = flat(weight) - flat(weight) @ basis.T @ basis
    exact = np.moveaxis(target.reshape(np.moveaxis(weight, base.axis, -1).shape), -1, base.axis)
    nearest = base.grid.values(base.grid.nearest(exact))
    off = flat(now) - target
    before = np.linalg.norm(flat(weight) @ basis.T, axis=0)
    scale, zero, codes = (flat(value) for value in (baked.grid.scale, baked.grid.zero, baked.grid.nearest(exact)))
    some = range(min(columns, len(target)))
    least = sum(least_error(target[at], codes[at], baked.grid, scale[at], zero[at], basis) for at in some)
    return {
        "nearest": float(np.max(np.linalg.norm(flat(nearest) @ basis.T, axis=0) / before)),
        "after": float(np.max(np.linalg.norm(flat(now) @ basis.T, axis=0) / before)),
        "error": float(np.linalg.norm(off) / np.linalg.norm(flat(nearest) - target)),
        "over": float(np.sqrt((off[: len(some)] ** 2).sum() / least)),
        "levels": float(np.max(np.abs(off) / np.where(scale == 0, 1, np.abs(scale)))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lancet", type=pathlib.Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=(576, 1024))
    parser.add_argument("--columns", type=int, default=128)
    args = parser.parse_args()
    lancet = pathlib.Path(os.path.abspath(args.lancet))
    lines = ["| width | bits | directions | nearest leaves | Lancet leaves | error over nearest | over the least | levels off "
             "| `auto` |", "|---|---|---|---|---|---|---|---|---|"]
    wrong = False
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for width in args.widths:
            for bits in BITS:
                path = make_model(folder, width, bits)
                for count in COUNTS:
                    raw = np.random.default_rng(count).standard_normal((count, width))
                    basis = np.linalg.qr(raw.T)[0].T
                    told = {"lancet.format": "2"}  # of a bare matrix one row would have to be named
                    save_file({"direction": np.ascontiguousarray(basis, np.float32)}, folder / "d.safetensors", told)
                    auto = {e["treatment"] for e in table.bake(lancet, path, folder / "d.safetensors", folder / "auto")}
                    table.bake(lancet, path, folder / "d.safetensors", folder / "out", "round")
                    after = {m.key: m for m in readers.matrices(onnx.load(str(folder / "out" / path.name)), True)}
                    found = [judged(m, after[m.key], basis, args.columns)
                             for m in readers.matrices(onnx.load(str(path)), True)
                             if table.check.changed(m, after[m.key])]
                    most = {key: max(row[key] for row in found) for key in found[0]}
                    wrong |= most["after"] > 1e-3 or most["levels"] > 1.001 or most["over"] > 1.05
                    treated = ", ".join(sorted(auto & {"rounded", "nodes"}))
                    lines.append(f"| {width} | {bits} | {count} | {100 * most['nearest']:.2g} % | {100 * most['after']:.2g} % "
                                 f"| {most['error']:.3f} | {most['over']:.3f} | {most['levels']:.3f} | {treated} |")
                    print(lines[-1], flush=True)
    table.put("several", lines)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
