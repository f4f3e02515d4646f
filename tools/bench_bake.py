"""Time `lancet bake` on a large model against `cp` of the same file, in turn, and report ratios.

Needs: numpy and onnx, a release build, and about 8 GB of disk. Makes the model (1.6 GB, float32, random,
Llama-like, one file) and a random direction in target/bench if they are not there.

    python tools/bench_bake.py [--runs 5] [--bits 4]

With `--bits` every product is a MatMulNBits of random codes (block 32, float32 scales); the embedding stays float32.

`lancet bake` writes the model, hashes every edited tensor before and after, syncs it to the disk, reads it back
and compares every byte outside the plan, then publishes it. So it is compared with `cp`, and with the plain
tools for the same work: `cp`, `sync` of the copy, `cmp` of both, `sha256sum` of both.
"""

import argparse
import pathlib
import resource
import shutil
import statistics
import subprocess
import time

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = pathlib.Path(__file__).resolve().parent.parent
BENCH = ROOT / "target" / "bench"
LAYERS, WIDTH, INNER, VOCAB, HEADS = 12, 1536, 4096, 32000, 12
BLOCK = 32


def make_model(path, bits):
    rng = np.random.default_rng(0)
    nodes, weights = [], []

    def product(x, name, k, n, output):
        """x times a random weight [k, n]."""
        if not bits:
            return node("MatMul", [x, weight(name, k, n)], output)
        codes, scales = rng.bytes(n * k * bits // 8), rng.uniform(0.001, 0.003, n * k // BLOCK).astype(np.float32)
        weights.append(helper.make_tensor(name, TensorProto.UINT8, [n, k // BLOCK, BLOCK * bits // 8], codes, raw=True))
        weights.append(helper.make_tensor(name + ".s", TensorProto.FLOAT, [n * k // BLOCK], scales.tobytes(), raw=True))
        return node("MatMulNBits", [x, name, name + ".s"], output, domain="com.microsoft", K=k, N=n, bits=bits,
                    block_size=BLOCK)

    def weight(name, *shape):
        data = (rng.standard_normal(shape, dtype=np.float32) * 0.02).tobytes()
        weights.append(helper.make_tensor(name, TensorProto.FLOAT, shape, data, raw=True))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def norm(x, name):
        gain = helper.make_tensor(name + ".w", TensorProto.FLOAT, [WIDTH], np.ones(WIDTH, np.float32).tobytes(), raw=True)
        weights.append(gain)
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


def timed(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--bits", type=int, choices=(2, 4, 8), help="a quantised model")
    args = parser.parse_args()
    runs = args.runs
    BENCH.mkdir(parents=True, exist_ok=True)
    name = f"model{args.bits}" if args.bits else "model"
    model, direction = BENCH / name / "model.onnx", BENCH / "direction.npy"
    if not model.exists():
        model.parent.mkdir(exist_ok=True)
        make_model(model, args.bits)
    np.save(direction, np.random.default_rng(1).standard_normal(WIDTH))
    lancet, out, copy = ROOT / "target" / "release" / "lancet", BENCH / "out", BENCH / "copy.onnx"
    plain = f"cp {model} {copy} && sync {copy} && cmp {model} {copy} && sha256sum {model} {copy}"
    rows = {"cp": [], "cp, sync, cmp, sha256sum": [], "lancet bake": []}
    peak = 0
    for run in range(runs + 1):
        shutil.rmtree(out, ignore_errors=True)
        for name, command in (
            ("cp", ["cp", model, copy]), ("cp, sync, cmp, sha256sum", ["sh", "-c", plain]),
            ("lancet bake", ["/usr/bin/env", lancet, "bake", model, "--direction", direction, "-o", out, "-q"]),
        ):
            copy.unlink(missing_ok=True) if name.startswith("cp") else None
            took = timed(command)
            if run:  # the first one warms the cache
                rows[name].append(took)
    measure = f"import resource,subprocess,sys; subprocess.run(sys.argv[1:],check=True,stdout=-3,stderr=-3); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    shutil.rmtree(out, ignore_errors=True)
    command = ["python3", "-c", measure, lancet, "bake", model, "--direction", direction, "-o", out, "-q"]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{model.stat().st_size / 1e6:.0f} MB, {runs} runs in turn, medians")
    base = statistics.median(w for w, _ in rows["cp"])
    for name, took in rows.items():
        wall, cpu = (statistics.median(t[i] for t in took) for i in (0, 1))
        print(f"{name:28} wall {wall:6.2f} s  cpu {cpu:6.2f} s  ratio to cp {wall / base:5.2f}")
    print(f"lancet bake: peak memory {peak / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
