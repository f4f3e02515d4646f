"""Time `lancet bake` on a large model against `cp` and `cp` + `sync` of the same files, in turn, and print each ratio
beside its limit.

Needs: numpy and onnx, a release build, and disk for three times the model. Makes the model (random, Llama-like) and a
random direction in target/bench if they are not there.

    cargo build --release --bin lancet --example bench_stages
    python tools/bench/bake.py [--runs 5] [--gigabytes 1.75] [--bits 4]

With `--bits` every product is a MatMulNBits of random codes (block 32, float32 scales); the embedding stays float32, and
the example `bench_stages` tells how many weights are rounded a second. A model of more than 1.9 GB has its weights in a
file of external data.

`lancet bake` writes the model, hashes every edited tensor before and after, syncs it to the disk, reads it back
and compares every byte outside the plan, edits the tensors again, then publishes it. With `--no-sync` it does all of
this but the sync. `cmp` and `sha256sum` are what plain tools need for a part of the same work.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import measure

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BENCH = ROOT / "target" / "bench"
LAYERS, WIDTH, INNER, VOCAB, HEADS = 12, 1536, 4096, 32000, 12
BLOCK = 32

# the limits: times of `cp` with its sync, of `cp` alone, and of memory in MB; millions of weights a second
WITH_SYNC, WITHOUT_SYNC, MEMORY, ROUNDED = 1.5, 1.6, 64.0, 250.0


def make_model(path, bits, external=False):
    """Writes a random model; with `external` its weights go to a file beside it, one after the other."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    beside = path.with_name(path.name + ".data")
    data = open(beside, "wb") if external else None

    def tensor(name, kind, shape, raw):
        if not external:
            weights.append(helper.make_tensor(name, kind, shape, raw, raw=True))
            return
        data.write(b"\0" * (-data.tell() % 4096))
        found = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", beside.name), ("offset", data.tell()), ("length", len(raw))):
            found.external_data.add(key=key, value=str(value))
        data.write(raw)
        weights.append(found)

    def product(x, name, k, n, output):
        """x times a random weight [k, n]."""
        if not bits:
            return node("MatMul", [x, weight(name, k, n)], output)
        codes, scales = rng.bytes(n * k * bits // 8), rng.uniform(0.001, 0.003, n * k // BLOCK).astype(np.float32)
        tensor(name, TensorProto.UINT8, [n, k // BLOCK, BLOCK * bits // 8], codes)
        tensor(name + ".s", TensorProto.FLOAT, [n * k // BLOCK], scales.tobytes())
        return node("MatMulNBits", [x, name, name + ".s"], output, domain="com.microsoft", K=k, N=n, bits=bits,
                    block_size=BLOCK)

    def weight(name, *shape):
        tensor(name, TensorProto.FLOAT, shape, (rng.standard_normal(shape, dtype=np.float32) * 0.02).tobytes())
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def norm(x, name):
        tensor(name + ".w", TensorProto.FLOAT, [WIDTH], np.ones(WIDTH, np.float32).tobytes())
        return node("LayerNormalization", [x, name + ".w"], name, axis=-1)

    x = node("Gather", [weight("embed", VOCAB, WIDTH), "input_ids"], "x0")
    for layer in range(LAYERS):
        p = f"l{layer}."
        h = norm(x, p + "n1")
        q = product(h, p + "q.w", WIDTH, WIDTH, p + "q")
        k = product(h, p + "k.w", WIDTH, WIDTH, p + "k")
        v = product(h, p + "v.w", WIDTH, WIDTH, p + "v")
        a = node("Softmax", [node("MatMul", [q, node("Transpose", [k], p + "kt", perm=[0, 2, 1])], p + "qk")], p + "a")
        o = product(node("MatMul", [a, v], p + "av"), p + "o.w", WIDTH, WIDTH, p + "o")
        x = node("Add", [x, o], p + "mid")
        up = node("Relu", [product(norm(x, p + "n2"), p + "up.w", WIDTH, INNER, p + "up")], p + "act")
        gate = node("Sigmoid", [product(p + "n2", p + "gate.w", WIDTH, INNER, p + "gate")], p + "g")
        down = product(node("Mul", [up, gate], p + "ug"), p + "down.w", INNER, WIDTH, p + "down")
        x = node("Add", [x, down], p + "post")
    product(norm(x, "final"), "head", WIDTH, VOCAB, "logits")
    graph = helper.make_graph(
        nodes, "bench", [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "n_pos"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "n_pos", VOCAB])], weights,
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid("com.microsoft", 1)] if bits else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    if data:
        data.close()


def layers_for(gigabytes, bits):
    """Number of layers of a model of about so many bytes."""
    of_product = (bits / 8 + 4 / BLOCK) if bits else 4
    fixed = WIDTH * VOCAB * (4 + of_product)
    layer = (4 * WIDTH * WIDTH + 3 * WIDTH * INNER) * of_product
    return max(1, round((gigabytes * 1e9 - fixed) / layer))


def main():
    global LAYERS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, help="size of the model; 1.75, or 0.44 with 4 bits, if not given")
    parser.add_argument("--bits", type=int, choices=(2, 4, 8), help="a quantised model")
    parser.add_argument("--lancet", type=pathlib.Path, default=ROOT / "target" / "release" / "lancet")
    parser.add_argument("--bench", type=pathlib.Path, default=BENCH, help="folder for the models and the outputs")
    parser.add_argument("--plain", action="store_true", help="also time `cp`, `sync`, `cmp` and `sha256sum` together")
    args = parser.parse_args()
    bench, lancet = args.bench, args.lancet.resolve()
    if args.gigabytes:
        LAYERS = layers_for(args.gigabytes, args.bits)
    folder = bench / (f"model{args.bits or 32}-{LAYERS}")
    model, direction, out, copy = folder / "model.onnx", bench / "direction.npy", bench / "out", bench / "copy"
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_model(model, args.bits, external=(args.gigabytes or 1) > 1.9)
    np.save(direction, np.random.default_rng(1).standard_normal(WIDTH))
    bake = [lancet, "bake", model, "--direction", direction, "-o", out, "--bytes-only", "-q"]
    rows = {
        "cp": ["cp", "-r", folder, copy],
        "cp, sync": ["sh", "-c", f"cp -r {folder} {copy} && sync {copy}/*"],
        "lancet bake": bake,
        "lancet bake --no-sync": [*bake, "--no-sync"],
    }
    if args.plain:
        files = " ".join(str(copy / file.name) for file in folder.iterdir())
        compare = " && ".join(f"cmp {file} {copy / file.name}" for file in folder.iterdir())
        rows["cp, sync, cmp, sha256sum"] = [
            "sh", "-c", f"cp -r {folder} {copy} && sync {files} && {compare} && sha256sum {folder}/* {copy}/*"]
    taken = measure.in_turn(rows, args.runs, [out, copy])
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{size / 1e6:.0f} MB in {LAYERS} layers, {args.runs} runs in turn, medians")
    measure.table(taken)
    peak = max(memory for name in taken if name.startswith("lancet") for *_, memory in taken[name])
    fine = [measure.held("lancet bake / (cp + sync)", measure.ratio(taken, "lancet bake", "cp, sync"), WITH_SYNC, " x")]
    fine.append(measure.held(
        "lancet bake --no-sync / cp", measure.ratio(taken, "lancet bake --no-sync", "cp"), WITHOUT_SYNC, " x"))
    fine.append(measure.held("peak memory of lancet bake", peak / 1e6, MEMORY, " MB"))
    stages = lancet.parent / "examples" / "bench_stages"
    if args.bits and not stages.exists():
        print(f"million weights a second while written: not measured, {stages} is not built")
        fine.append(False)
    elif args.bits:
        said = subprocess.run([stages, model, direction], capture_output=True, text=True, check=True).stdout
        million = float(said.rsplit("weights rounded, ", 1)[1].split(" million")[0])
        fine.append(measure.held("million weights a second while written", million, ROUNDED, least=True))
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()
