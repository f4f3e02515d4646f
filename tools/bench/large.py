"""Make a synthetic 7B model in q4f16 (about 4 GB) and time Lancet on it: `inspect`, and `bake` against `cp` + `sync`.

Needs: numpy and onnx, a release build, and disk for three times the model. The model is laid out as onnxruntime-genai
writes Llama: MatMulNBits of 4 bits in blocks of 32, float16 scales and activations, GroupQueryAttention with a KV cache,
external data. Its weights are random and are written one after the other, so that making it needs little memory.

    python tools/bench/large.py [--runs 3] [--layers 32] [--collect]

With `--collect` also `lancet collect` of 32 prompts a class, whose memory has to stay below 24 GB. It needs ONNX Runtime
(`lancet runtime install`) and takes long: a random model of 7 billion weights is run on the CPU. The tokenizer is that of
fixtures/chat, whose tokens are among the model's 32000. A random model refuses nothing or everything, so the command may
end with too few prompts after the filter; it has run them all then.
"""

import argparse
import json
import pathlib
import shutil
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import measure

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WIDTH, INNER, VOCAB, HEADS, HEAD, CONTEXT, BLOCK = 4096, 11008, 32000, 32, 128, 4096, 32
INSPECT_SECONDS, WITH_SYNC, MEMORY, COLLECT_MEMORY = 0.5, 1.5, 64.0, 24_000.0
PROMPTS = 32


class Writer:
    """A graph whose weights go to a file of external data as they are made."""

    def __init__(self, path):
        self.path, self.nodes, self.weights = path, [], []
        self.data = open(path.with_name(path.name + ".data"), "wb")
        self.rng = np.random.default_rng(0)

    def tensor(self, name, kind, shape, pieces):
        self.data.write(b"\0" * (-self.data.tell() % 4096))
        start = self.data.tell()
        for piece in pieces:
            self.data.write(piece)
        found = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.path.name + ".data"), ("offset", start),
                           ("length", self.data.tell() - start)):
            found.external_data.add(key=key, value=str(value))
        self.weights.append(found)
        return name

    def half(self, name, *shape, mean=0.0, spread=0.02):
        rows = (self.rng.standard_normal(shape[1:], dtype=np.float32) * spread + mean for _ in range(shape[0]))
        return self.tensor(name, TensorProto.FLOAT16, shape, (row.astype(np.float16).tobytes() for row in rows))

    def node(self, op, inputs, outputs, domain="com.microsoft", **attributes):
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def product(self, x, name, k, n, output=None):
        """x times a quantised weight whose values have a standard deviation of about 1 / sqrt(K)."""
        codes = (self.rng.bytes(k // 2) for _ in range(n))
        weight = self.tensor(name + ".weight_Q4", TensorProto.UINT8, [n, k // BLOCK, BLOCK // 2], codes)
        step = 1 / (4.6 * k ** 0.5)
        scales = (self.rng.uniform(0.8 * step, 1.2 * step, k // BLOCK).astype(np.float16).tobytes() for _ in range(n))
        scale = self.tensor(name + ".weight_scales", TensorProto.FLOAT16, [n, k // BLOCK], scales)
        return self.node("MatMulNBits", [x, weight, scale], [output or name + "/output_0"], K=k, N=n, bits=4,
                         block_size=BLOCK, accuracy_level=4)

    def skip_norm(self, skip, x, name, last=False):
        outputs = [name + "/output_0"] + ([] if last else ["", "", name + "/output_3"])
        weight = self.half(name + ".weight", 1, WIDTH, mean=1.0)
        self.weights[-1].dims[:] = [WIDTH]
        self.node("SkipSimplifiedLayerNormalization", [skip, x, weight], outputs, epsilon=1e-5)
        return outputs[0], outputs[-1]


def make_model(folder, layers):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    out = Writer(path)
    cos, sin = rotary()
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    index = helper.make_tensor("index", TensorProto.INT64, [], [1])
    out.weights += [one, index]
    plain = {"domain": ""}
    out.node("ReduceSum", ["attention_mask", "one"], ["mask.sum"], keepdims=0, **plain)
    out.node("Sub", ["mask.sum", "one"], ["mask.last"], **plain)
    out.node("Cast", ["mask.last"], ["seqlens_k"], to=TensorProto.INT32, **plain)
    out.node("Shape", ["attention_mask"], ["mask.shape"], **plain)
    out.node("Gather", ["mask.shape", "index"], ["mask.width"], axis=0, **plain)
    out.node("Cast", ["mask.width"], ["total_sequence_length"], to=TensorProto.INT32, **plain)
    out.tensor("cos_cache", TensorProto.FLOAT16, cos.shape, [cos.tobytes()])
    out.tensor("sin_cache", TensorProto.FLOAT16, sin.shape, [sin.tobytes()])
    stream = out.node("Gather", [out.half("model.embed_tokens.weight", VOCAB, WIDTH), "input_ids"], ["embed"], **plain)
    weight = out.half("model.layers.0.input_layernorm.weight", 1, WIDTH, mean=1.0)
    out.weights[-1].dims[:] = [WIDTH]
    h = out.node("SimplifiedLayerNormalization", [stream, weight], ["norm.0"], axis=-1, epsilon=1e-5, stash_type=1,
                 **plain)
    for layer in range(layers):
        p = f"model.layers.{layer}."
        qkv = out.product(h, p + "attn.qkv_proj.MatMul", WIDTH, 3 * WIDTH)
        attention = out.node(
            "GroupQueryAttention",
            [qkv, "", "", f"past_key_values.{layer}.key", f"past_key_values.{layer}.value", "seqlens_k",
             "total_sequence_length", "cos_cache", "sin_cache"],
            [p + "attn/output_0", f"present.{layer}.key", f"present.{layer}.value"], num_heads=HEADS,
            kv_num_heads=HEADS, scale=HEAD ** -0.5, do_rotary=1, rotary_interleaved=0)
        o = out.product(attention, p + "attn.o_proj.MatMul", WIDTH, WIDTH)
        h, stream = out.skip_norm(stream, o, p + "post_attention_layernorm")
        gate = out.product(h, p + "mlp.gate_proj.MatMul", WIDTH, INNER)
        up = out.product(h, p + "mlp.up_proj.MatMul", WIDTH, INNER)
        act = out.node("Mul", [gate, out.node("Sigmoid", [gate], [p + "sigmoid"], **plain)], [p + "act"], **plain)
        down = out.product(out.node("Mul", [act, up], [p + "mul"], **plain), p + "mlp.down_proj.MatMul", INNER, WIDTH)
        last = layer == layers - 1
        name = "model.norm" if last else f"model.layers.{layer + 1}.input_layernorm"
        h, stream = out.skip_norm(stream, down, name, last)
    out.product(h, "lm_head.MatMul", WIDTH, VOCAB, "logits")
    out.data.close()

    def cache(name, length):
        return [helper.make_tensor_value_info(f"{name}.{layer}.{part}", TensorProto.FLOAT16,
                                              ["batch_size", HEADS, length, HEAD])
                for layer in range(layers) for part in ("key", "value")]

    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
              helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
              *cache("past_key_values", "past_sequence_length")]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT16, ["batch_size", "sequence_length", VOCAB])
    graph = helper.make_graph(out.nodes, "large", inputs, [logits, *cache("present", "total_sequence_length")],
                              out.weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    config = {"model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": layers, "vocab_size": VOCAB,
              "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD, "eos_token_id": 2,
              "bos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": CONTEXT}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        shutil.copy(ROOT / "fixtures" / "chat" / name, folder / name)


def rotary():
    angles = np.outer(np.arange(CONTEXT), 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD))
    return np.cos(angles).astype(np.float16), np.sin(angles).astype(np.float16)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--collect", action="store_true", help="also the memory of `lancet collect`")
    parser.add_argument("--lancet", type=pathlib.Path, default=ROOT / "target" / "release" / "lancet")
    parser.add_argument("--bench", type=pathlib.Path, default=ROOT / "target" / "bench")
    args = parser.parse_args()
    bench, lancet = args.bench, args.lancet.resolve()
    folder = bench / f"large-{args.layers}"
    if not (folder / "config.json").exists():
        make_model(folder, args.layers)
    direction, out, copy = bench / "direction-large.npy", bench / "out", bench / "copy"
    np.save(direction, np.random.default_rng(1).standard_normal(WIDTH))
    model = folder / "model.onnx"
    rows = {"lancet inspect": [lancet, "inspect", model, "-q"]}
    inspected = measure.in_turn(rows, args.runs, [], settle=False)
    rows = {
        "cp": ["cp", "-r", folder, copy],
        "cp, sync": ["sh", "-c", f"cp -r {folder} {copy} && sync {copy}/*"],
        "lancet bake": [lancet, "bake", model, "--direction", direction, "-o", out, "--bytes-only", "-q"],
    }
    taken = measure.in_turn(rows, args.runs, [out, copy])
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{size / 1e6:.0f} MB in {args.layers} layers, {args.runs} runs in turn, medians")
    measure.table({**inspected, **taken})
    peak = max(memory for *_, memory in taken["lancet bake"])
    fine = [
        measure.held("lancet inspect", measure.median(inspected, "lancet inspect"), INSPECT_SECONDS, " s"),
        measure.held("lancet bake / (cp + sync)", measure.ratio(taken, "lancet bake", "cp, sync"), WITH_SYNC, " x"),
        measure.held("peak memory of lancet bake", peak / 1e6, MEMORY, " MB"),
    ]
    if args.collect:
        command = [lancet, "collect", folder, "-o", out, "--prompts", ROOT / "fixtures" / "chat" / "prompts",
                   "--n-train", str(PROMPTS), "-q"]
        measure.remove([out])
        wall, _, peak = measure.timed(command, excused="after the filter")
        measure.remove([out])
        print(f"lancet collect of {PROMPTS} prompts a class: {wall:.0f} s")
        fine.append(measure.held("peak memory of lancet collect", peak / 1e6, COLLECT_MEMORY, " MB"))
    sys.exit(not all(fine))


if __name__ == "__main__":
    main()
