"""Write fixtures/hostile: small files that are made to break what reads them, each with what Lancet must do.

    python tools/make_hostile.py            # needs onnx, numpy; the same bytes every time

`expected.json` lists them: `kind` says how tests/hostile.rs gives the file to Lancet, `exit` the codes that are right,
`words` what the message must hold. `SEEDS=folder` also writes seeds for the fuzz targets (tools/fuzz) there.
"""

import json
import os
import pathlib
import struct

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "hostile"
ESCAPES = "\x1b[2J\nerror: forged\u202e\x9b31m"
WIDTH, VOCABULARY = 4, 6
entries: list[dict] = []


def add(kind: str, name: str, data: bytes | str, exit_code: int | list[int], *words: str, **more):
    """One file, how it is used, and what must come of it."""
    data = data.encode() if isinstance(data, str) else data
    path = HERE / f"{kind}s" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    codes = exit_code if isinstance(exit_code, list) else [exit_code]
    entry = {"file": f"{kind}s/{name}", "kind": kind, "exit": codes, "words": list(words), **more}
    entries.append(entry)


# Models


class Graph:
    """A decoder of one layer, width 4, that Lancet edits, to be damaged by its user."""

    def __init__(self, layers: int = 1):
        self.rng = np.random.default_rng(1)
        self.nodes, self.tensors = [], []
        ids = self.tensor("embed", (VOCABULARY, WIDTH))
        stream = self.op("Gather", ["embed", "input_ids"])
        assert ids == "embed"
        for layer in range(layers):
            normed = self.norm(stream, f"n1.{layer}")
            q, k, v = (self.linear(normed, f"{part}.{layer}") for part in "qkv")
            scores = self.op("MatMul", [q, self.op("Transpose", [k], perm=[0, 2, 1])])
            mixed = self.op("MatMul", [self.op("Softmax", [scores], axis=-1), v])
            stream = self.op("Add", [stream, self.linear(mixed, f"o.{layer}")])
            normed = self.norm(stream, f"n2.{layer}")
            hidden = self.op("Relu", [self.linear(normed, f"up.{layer}", WIDTH, 2 * WIDTH)])
            stream = self.op("Add", [stream, self.linear(hidden, f"down.{layer}", 2 * WIDTH, WIDTH)])
        self.op("MatMul", [self.norm(stream, "final"), self.tensor("head", (WIDTH, VOCABULARY))], "logits")

    def tensor(self, name: str, shape: tuple) -> str:
        self.tensors.append(numpy_helper.from_array(self.rng.standard_normal(shape).astype(np.float32), name))
        return name

    def op(self, kind: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node.{len(self.nodes)}", **attributes))
        return output

    def linear(self, x: str, name: str, rows: int = WIDTH, columns: int = WIDTH) -> str:
        return self.op("MatMul", [x, self.tensor(name, (rows, columns))])

    def norm(self, x: str, name: str) -> str:
        if not any(t.name == "eps" for t in self.tensors):
            self.tensors.append(numpy_helper.from_array(np.float32(1e-5), "eps"))
            self.tensors.append(numpy_helper.from_array(np.array([-1]), "last"))
        mean = self.op("ReduceMean", [self.op("Mul", [x, x]), "last"], keepdims=1)
        scaled = self.op("Div", [x, self.op("Sqrt", [self.op("Add", [mean, "eps"])])])
        return self.op("Mul", [scaled, self.tensor(name, (WIDTH,))])

    def model(self) -> ModelProto:
        return wrap(self.nodes, self.tensors)


def wrap(nodes, tensors=(), functions=(), outputs=("logits",)) -> ModelProto:
    """A model with token ids in and logits out around any nodes."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    logits = [helper.make_tensor_value_info(o, TensorProto.FLOAT, ["batch", "sequence", VOCABULARY]) for o in outputs]
    graph = helper.make_graph(list(nodes), "g", [ids], logits, list(tensors))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9)


def function(name: str, nodes) -> object:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["x"], ["y"], list(nodes), opsets)


def node(kind: str, inputs: list[str], output: str, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def changed(change, layers: int = 1) -> bytes:
    model = Graph(layers).model()
    change(model)
    return model.SerializeToString()


def find(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def first_sum(model: ModelProto):
    """The node that adds the first write to the stream."""
    return next(n for n in model.graph.node if n.op_type == "Add" and "eps" not in n.input)


def external(model: ModelProto, name: str, **entries):
    """Makes a tensor external, with these entries."""
    tensor = find(model, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key.replace("__", "."), value=value)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def models():
    plain = Graph().model().SerializeToString()
    add("model", "plain.onnx", plain, 0, width=WIDTH)
    for name, data in [("empty", b""), ("text", b"not a model\n"), ("zeros", bytes(64)), ("ones", b"\xff" * 64),
                       ("cut_half", plain[:len(plain) // 2]), ("cut_one", plain[:-1]),
                       ("length_past_end", b"\x3a\xff\xff\xff\xff\x0f"), ("varint_too_long", b"\x08" + b"\xff" * 11),
                       ("deep_groups", b"\x3b" * 1000)]:
        add("model", f"{name}.onnx", data, [1, 2])
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n"
    add("model", "lfs_pointer.onnx", pointer, [1, 2])

    # sums of a value with itself, and of the last two; work must not double at every step
    head = node("MatMul", ["x", "w"], "logits")
    weight = numpy_helper.from_array(np.ones((WIDTH, VOCABULARY), np.float32), "w")
    start = node("Cast", ["input_ids"], "v0", to=TensorProto.FLOAT)
    for n in (16, 60):
        double = [node("Add", [f"v{i}", f"v{i}"], f"v{i + 1}" if i + 1 < n else "x") for i in range(n)]
        add("model", f"double_{n}.onnx", wrap([start, *double, head], [weight]).SerializeToString(), 1)
    fibonacci = [node("Add", [f"v{max(i - 1, 0)}", f"v{i}"], f"v{i + 1}" if i < 59 else "x") for i in range(60)]
    add("model", "fibonacci.onnx", wrap([start, *fibonacci, head], [weight]).SerializeToString(), 1)
    constants = [node("Add", ["eps" if i == 0 else f"c{i - 1}"] * 2, f"c{i}") for i in range(50)]

    def doubled_constant(model):
        model.graph.node.extend(constants)
        model.graph.node.insert(0, node("Identity", ["c49"], "unused"))
        add_node = next(n for n in model.graph.node if n.op_type == "Add" and "eps" in n.input)
        add_node.input[1] = "c49"
    add("model", "double_constant.onnx", changed(doubled_constant), [0, 1, 2])

    # functions
    for n in (20, 50):
        twice = [function(f"F{i}", [node(f"F{i + 1}" if i + 1 < n else "Neg", ["x"], "t"),
                                    node(f"F{i + 1}" if i + 1 < n else "Neg", ["t"], "y")]) for i in range(n)]
        for f in twice[:-1]:
            for call in f.node:
                call.domain = "f"
        call = node("F0", ["input_ids"], "logits", domain="f")
        add("model", f"functions_call_twice_{n}.onnx", wrap([call], (), twice).SerializeToString(), [1, 2])
    chain = [function(f"F{i}", [node(f"F{i + 1}", ["x"], "y", domain="f") if i < 149 else node("Neg", ["x"], "y")])
             for i in range(150)]
    add("model", "functions_in_a_chain.onnx",
        wrap([node("F0", ["input_ids"], "logits", domain="f")], (), chain).SerializeToString(), [1, 2])
    itself = [function("F0", [node("F0", ["x"], "y", domain="f")])]
    add("model", "function_calls_itself.onnx",
        wrap([node("F0", ["input_ids"], "logits", domain="f")], (), itself).SerializeToString(), [1, 2])
    calls = [helper.make_node("F0", ["input_ids"], [f"u{i}"], name="same", domain="f") for i in range(150)]
    add("model", "one_name_many_calls.onnx",
        wrap([*calls, node("Neg", ["u0"], "logits")], (), [function("F0", [node("Neg", ["x"], "y")])])
        .SerializeToString(), [1, 2])

    # branches
    def branches(depth: int):
        then = helper.make_graph([node("Neg", ["input_ids"], "y0")], "b0", [], [helper.make_empty_tensor_value_info("y0")])
        for i in range(depth):
            inner = helper.make_node("If", ["flag"], [f"y{i + 1}"], then_branch=then, else_branch=then if i < 6 else
                                     helper.make_graph([node("Neg", ["input_ids"], "z")], "e", [],
                                                       [helper.make_empty_tensor_value_info("z")]))
            then = helper.make_graph([inner], f"b{i + 1}", [], [helper.make_empty_tensor_value_info(f"y{i + 1}")])
        return list(then.node)
    flag = numpy_helper.from_array(np.array(True), "flag")
    nested = branches(16)
    add("model", "nested_branches.onnx",
        wrap([*nested, node("Neg", ["y16"], "logits")], [flag]).SerializeToString(), [1, 2])
    deep = b""
    for _ in range(150):  # graph in attribute in node in graph ..
        deep = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, deep) + b"\xa0\x01\x05"))
    add("model", "deep_branches.onnx", b"\x08\x09" + field(7, deep), [1, 2])
    many = [helper.make_node("If", ["flag"], [f"i{k}"], then_branch=helper.make_graph(
        [node("Neg", ["input_ids"], "q")], "t", [], [helper.make_empty_tensor_value_info("q")]),
        else_branch=helper.make_graph([node("Neg", ["input_ids"], "q")], "t", [],
                                      [helper.make_empty_tensor_value_info("q")])) for k in range(60)]
    add("model", "many_branches.onnx", wrap([*many, node("Neg", ["i0"], "logits")], [flag]).SerializeToString(), [1, 2])

    # graphs that are none
    add("model", "logits_nobody_makes.onnx", wrap([node("Identity", ["input_ids"], "x")]).SerializeToString(), [1, 2])
    add("model", "no_outputs.onnx", wrap([node("Identity", ["input_ids"], "x")], outputs=()).SerializeToString(), [1, 2])
    add("model", "cycle.onnx", changed(lambda m: m.graph.node[1].input.__setitem__(0, m.graph.node[-2].output[0])),
        [1, 2])
    add("model", "one_name_twice.onnx", changed(lambda m: m.graph.node[3].output.__setitem__(0, "v1")), [0, 1, 2])
    add("model", "empty_nodes.onnx", b"\x08\x09" + field(7, field(1, b"") * 3000), [1, 2])
    reference = node("Neg", ["x"], "y")
    reference.attribute.append(AttributeProto(name="a", ref_attr_name="a", type=AttributeProto.GRAPH))
    self_attribute = function("F0", [reference])
    self_attribute.attribute.append("a")
    body = helper.make_graph([node("F0", ["q"], "r", domain="f")], "body", [], [])
    outer = helper.make_node("F0", ["input_ids"], ["logits"], domain="f", a=body)
    add("model", "attribute_inside_itself.onnx", wrap([outer], (), [self_attribute]).SerializeToString(), [1, 2])

    # sizes
    def dims(name, *sizes):
        def change(model):
            tensor = find(model, name)
            del tensor.dims[:]
            tensor.dims.extend(sizes)
        return change
    for name, sizes in [("zero", (0, WIDTH)), ("negative", (-1, WIDTH)), ("overflow", (1 << 32, 1 << 32)),
                        ("huge", (1 << 62,)), ("too_many", (1,) * 300), ("other", (VOCABULARY, WIDTH + 1))]:
        add("model", f"dims_{name}.onnx", changed(dims("embed", *sizes)), [0, 1, 2])
    add("model", "dims_zero_head.onnx", changed(dims("head", WIDTH, 0)), [1, 2])
    # more bytes than 64 bits count, and a size that is harmless only until the 0 beside it is left out
    add("model", "dims_more_bytes.onnx", changed(dims("embed", 1 << 60, WIDTH)), [1, 2], "overflow")
    def empty(model):
        dims("embed", 0, 1 << 62)(model)
        find(model, "embed").ClearField("raw_data")
    add("model", "dims_beside_zero.onnx", changed(empty), [1, 2], "overflow")
    def few_values(model):
        tensor = find(model, "down.0")
        tensor.ClearField("raw_data")
        tensor.data_type = TensorProto.FLOAT16
        tensor.int32_data.extend([0x3C00] * 8)
        tensor.dims[0] = 1 << 40
    add("model", "few_packed_values.onnx", changed(few_values), [1, 2], "needs more")
    for name, attributes, shape in [
            ("bits_0", {"bits": 0}, (WIDTH, 1, 16)), ("block_0", {"block_size": 0}, (WIDTH, 1, 16)),
            ("block_negative", {"block_size": -16}, (WIDTH, 1, 16)), ("n_0", {"N": 0}, (0, 1, 16)),
            ("k_huge", {"K": 1 << 62}, (WIDTH, 1, 16)), ("shape_0", {}, (WIDTH, 0, 16))]:
        def quantised(model, attributes=attributes, shape=shape):
            product = next(n for n in model.graph.node if "down.0" in n.input)
            packed = numpy_helper.from_array(np.zeros(shape, np.uint8), "down.q")
            scales = numpy_helper.from_array(np.ones(WIDTH, np.float32), "down.s")
            model.graph.initializer.extend([packed, scales])
            values = {"K": 2 * WIDTH, "N": WIDTH, "bits": 4, "block_size": 32, **attributes}
            made = helper.make_node("MatMulNBits", [product.input[0], "down.q", "down.s"], list(product.output),
                                    domain="com.microsoft", **values)
            product.CopyFrom(made)
        add("model", f"nbits_{name}.onnx", changed(quantised), [0, 1, 2])  # by nodes

    def experts(model):
        product = next(n for n in model.graph.node if "down.0" in n.input)
        for t in ("w1", "w2"):
            model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, WIDTH, 0), np.uint8), t))
            model.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 0), np.float32), t + ".s"))
        router = product.input[0]
        product.CopyFrom(helper.make_node("QMoE", [router, router, "w1", "w1.s", "", "w2", "w2.s"],
                                          list(product.output), domain="com.microsoft", k=0, expert_weight_bits=4))
    add("model", "experts_of_size_0.onnx", changed(experts), [0, 1, 2])

    # external data
    for name, where in [
            ("above", {"location": "../../../../etc/passwd"}), ("absolute", {"location": "/etc/passwd"}),
            ("device", {"location": "/dev/zero"}), ("empty", {"location": ""}), ("absent", {"location": "no.data"}),
            ("itself", {"location": "model.onnx", "offset": "0", "length": "384"}),
            ("offset_huge", {"location": "model.onnx", "offset": str(1 << 63)}),
            ("offset_overflow", {"location": "model.onnx", "offset": str((1 << 64) - 8), "length": "384"}),
            ("length_negative", {"location": "model.onnx", "length": "-1"}),
            ("mark", {"location": "no.data", "lancet__tensor": "0"}),
            ("escapes", {"location": ESCAPES})]:
        add("model", f"external_{name}.onnx", changed(lambda m, w=where: external(m, "down.0", **w)),
            [0, 1] if name == "itself" else [1, 2])

    # names that steer a terminal
    def named(model):
        for n in model.graph.node:
            n.name = ESCAPES + n.name
        first_sum(model).op_type = ESCAPES
    add("model", "names_with_escapes.onnx", changed(named), 1, "\\u{1b}[2J\\nerror: forged")
    add("model", "domain_with_escapes.onnx",
        changed(lambda m: setattr(first_sum(m), "domain", ESCAPES)), 1)
    add("model", "tensor_with_escapes.onnx", changed(lambda m: [
        setattr(find(m, "embed"), "name", ESCAPES), m.graph.node[0].input.__setitem__(0, ESCAPES)]), [0, 1])


# Directions


def npy(descr: str, shape: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(128 - 11) + "\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header.encode() + data


def safetensors(header: dict | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def directions():
    vector = np.arange(1, 97, dtype=np.float32)
    add("direction", "claims_10_18.npy", npy("<f4", "(1000000000000000000,)", b""), 2, "holds 0 bytes of elements")
    add("direction", "claims_overflow.npy", npy("<f8", "(4294967296, 4294967296)", bytes(16)), 2, "its shape is")
    add("direction", "integers.npy", npy("<i8", "(96,)", vector.astype("<i8").tobytes()), 2, "its type is `<i8`")
    add("direction", "objects.npy", npy("|O", "(96,)", b"\x80\x04N."), 2, "its type is `|O`")
    add("direction", "complex.npy", npy("<c8", "(96,)", bytes(768)), 2, "its type is `<c8`")
    add("direction", "matrix.npy", npy("<f4", "(2, 48)", vector.tobytes()), 2, "it holds 2 vectors of 48 numbers")
    add("direction", "scalar.npy", npy("<f4", "()", vector[:1].tobytes()), 2, "its shape is []")
    add("direction", "version_9.npy", npy("<f4", "(96,)", vector.tobytes(), b"\x09\x00"), 2, "header is damaged")
    add("direction", "cut.npy", npy("<f4", "(96,)", vector.tobytes())[:60], 2, "header is damaged")
    add("direction", "half_nan.npy", npy("<f2", "(96,)", np.full(96, np.nan, "<f2").tobytes()), 2, "element 0")
    add("direction", "half_of_other_width.npy", npy("<f2", "(95,)", np.ones(95, "<f2").tobytes()), 2, "95 elements")
    one = {"dtype": "F32", "shape": [96], "data_offsets": [0, 384]}
    meta = {"lancet.addition_layer": "1e300", "lancet.addition_alpha": "1", "lancet.addition_position": "-1"}
    add("direction", "addition_layer.safetensors",
        safetensors({"__metadata__": meta, "direction": one, "addition": one}, vector.tobytes()), 2)
    both = {"direction": one, "addition": {**one, "data_offsets": [384, 768]}}
    for name, key, value in [("layer_1e300", "lancet.addition_layer", "1e300"), ("layer_0", "lancet.addition_layer", "0"),
                             ("position", "lancet.addition_position", "9"), ("alpha", "lancet.addition_alpha", "inf")]:
        good = {"lancet.addition_layer": "1", "lancet.addition_alpha": "1", "lancet.addition_position": "-1"}
        data = safetensors({"__metadata__": {**good, key: value}, **both}, vector.tobytes() * 2)
        add("direction", f"addition_{name}.safetensors", data, 2, "its addition is damaged", f"`{value}`")
    for name, data in [("header_2_60", struct.pack("<Q", 1 << 60)), ("header_negative", b"\xff" * 8 + b"{}"),
                       ("offsets", safetensors({"direction": {**one, "data_offsets": [0, 1 << 60]}}, vector.tobytes())),
                       ("shape", safetensors({"direction": {**one, "shape": [1 << 32, 1 << 32]}}, vector.tobytes())),
                       ("nested", safetensors(b'{"a":' * 1000, b""))]:
        add("direction", f"{name}.safetensors", data, 2, "holds no direction")
    add("direction", "names_with_escapes.safetensors",
        safetensors({ESCAPES: one, "other": {**one, "data_offsets": [384, 768]}}, vector.tobytes() * 2), 2,
        "none is `direction`")


# Chat


def templates():
    turn = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    double = "{% set l = l + l %}" * 40
    for name, source, *words in [
            ("namespace_in_itself", "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "kept in a namespace"),
            ("namespace_in_a_list", "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns ~ '' }}", "kept in a namespace"),
            ("namespaces_in_each_other", "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = {'b': b} %}"
             "{{ a == b }}", "kept in a namespace"),
            ("nested_by_a_loop", "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}"
             "{% endfor %}{{ ns.x }}", "nested more than"),
            ("doubled_in_a_loop", "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}"
             "{% endfor %}{{ ns.l | length }}", "more than"),
            ("doubled_line_by_line", "{% set l = [1] %}" + double + "{{ l }}", "more than"),
            ("tree_of_lists", "{% set l = [1] %}" + "{% set l = [l, l] %}" * 40 + "{{ l }}", "more than"),
            ("doubled_text", "{% set ns = namespace(t='a') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}"
             "{% endfor %}{{ ns.t }}"),
            ("by_macro", "{% macro f(n, l) %}{% if n %}{{ f(n - 1, [l, l, l, l, l, l, l, l, l, l]) }}{% else %}"
             "{{ l | string | length }}{% endif %}{% endmacro %}{{ f(15, 'aaaaaaaaaaaaaaaa') }}"),
            ("macro_calls_itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
            ("endless_loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
            ("long_text", "{{ 'a' * 99999999999 }}"), ("wide_text", "{{ 'a'.center(99999999999) }}"),
            ("replaced_text", "{% set t = 'a' * 100000 %}{{ t.replace('a', t) }}"),
            ("joined_text", "{% set t = 'a' * 100000 %}{{ t.join(t) | length }}"),
            ("deep_expression", "{{ " + "[" * 500 + "1" + "]" * 500 + " }}"),
            ("includes_itself", "{% include 'chat_template' %}"), ("imports_itself", "{% import 'chat_template' as t %}{{ t }}"),
            ("includes_a_file", "{% include '/etc/passwd' %}"),
            ("raises_escapes", "{{ raise_exception('\\u001b[2J\\nerror: forged' ~ messages[0].content) }}", "refused"),
            ("raw_escapes", "{{ raise_exception('" + ESCAPES + "') }}", "refused"),
            ("unclosed", "{% set x = 'a"), ("never_mentions_the_user", "Hello"),
            ("divides_by_zero", turn + "{{ 1 // 0 }}"), ("not_utf8", b"\xff\xfe{{ x }}")]:
        add("template", f"{name}.jinja", source, 2, *words)
    parts = "{% for m in messages %}<{{ m.role }}>{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}<a>"
    return [turn, parts]


def tokenizer(**changed) -> dict:
    words = ["<unk>", "<s>", "</s>", "<a>", "<user>", "<system>", "Hello", "Write", "What", "is", "this", "the", "sea",
             "Be", "brief", "I", ".", "?", "!", "q"]
    special = [{"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for i, w in enumerate(words[:6])]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<unk>"}, **changed}


def tokenizers():
    replace = {"type": "Replace", "pattern": {"String": "q"}, "content": "qq"}
    chain = {"type": "Sequence", "normalizers": [replace] * 50}
    nested = replace
    for _ in range(40):
        nested = {"type": "Sequence", "normalizers": [nested, replace]}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    write = lambda value: json.dumps(value, separators=(",", ":"))
    add("tokenizer", "replace_chain.json", write(tokenizer(normalizer=chain)), 2, "may lengthen a text")
    add("tokenizer", "replace_nested.json", write(tokenizer(normalizer=nested)), 2, "may lengthen a text")
    add("tokenizer", "replace_nothing.json", write(tokenizer(normalizer={"type": "Replace", "pattern": {"String": ""},
                                                                          "content": "q" * 2000})), 2, "may lengthen a text")
    add("tokenizer", "byte_level_chain.json", write(tokenizer(pre_tokenizer={
        "type": "Sequence", "pretokenizers": [level] * 40})), 2, "may lengthen a text")
    add("tokenizer", "decoder_chain.json", write(tokenizer(decoder={"type": "Sequence", "decoders": [replace] * 50})), 2,
        "may lengthen a text")
    add("tokenizer", "many_steps.json", write(tokenizer(normalizer={"type": "Sequence",
                                                                     "normalizers": [{"type": "NFC"}] * 300})), 2, "steps")
    model = lambda **more: {"type": "BPE", "vocab": {"a": 0}, "merges": [], **more}
    for name, value in [("empty", b""), ("null", b"null"), ("list", b"[]"), ("nested", b"[" * 1500),
                        ("no_vocabulary", write(tokenizer(model={"type": "WordLevel", "vocab": {}, "unk_token": "x"},
                                                          added_tokens=[]))),
                        ("bad_merge", write(tokenizer(model=model(merges=["a b"])))),
                        ("short_prefix", write(tokenizer(model={**model(vocab={"é": 0, "b": 1, "éb": 2},
                                                                        merges=[["é", "b"]]),
                                                                "continuing_subword_prefix": "##"}))),
                        ("bad_expression", write(tokenizer(pre_tokenizer={
                            "type": "Split", "pattern": {"Regex": "(" * 500}, "behavior": "Isolated", "invert": False})))]:
        add("tokenizer", f"{name}.json", value, 2)


def prompts():
    row = json.dumps
    for name, data, *words in [
            ("set.parquet", b"PAR1\x15\x04PAR1", "extension", "hint: convert it"),
            ("parquet.json", b"PAR1\x15\x04PAR1", "is a Parquet file"),
            ("utf16.csv", "prompt\na\n".encode("utf-16"), "is UTF-16 text"),
            ("latin1.txt", "caf\u00e9\n".encode("latin-1"), "line 1"),
            ("gzip.jsonl", b"\x1f\x8b\x08\x00", "is a gzip archive"), ("empty.json", b"", "holds no prompts"),
            ("bom_only.txt", b"\xef\xbb\xbf", "holds no prompts"), ("nested.json", b"[" * 1500, "is not valid JSON"),
            ("nested_rows.jsonl", b'{"a":' * 600, "is not valid JSON"),
            ("turns.jsonl", row({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                                              {"role": "user", "content": "c"}]}), "line 1", "several user turns"),
            ("system_turn.jsonl", row({"messages": [{"role": "system", "content": "Be rude."},
                                                    {"role": "user", "content": "a"}]}), "line 1", "a system turn"),
            ("system_column.jsonl", row({"instruction": "a", "system": "Be rude."}), "line 1", "would be lost"),
            ("input_number.jsonl", row({"instruction": "a", "input": 5}), "line 1", "a number under `input`"),
            ("number.json", row(["a", 5]), "item 2", "a number"), ("null.json", row([{"prompt": None}]), "null under"),
            ("keys_with_escapes.json", row([{ESCAPES: "a"}]), "item 1"),
            ("open_quote.csv", 'prompt\n"a\nb\n', "never closed"), ("uneven.csv", "prompt,x\na\n", "line 2"),
            ("escapes.json", row({ESCAPES: 1}), "holds no list")]:
        add("prompt", name, data, 2, *words)


def policies():
    for name, data, *words in [
            ("not_toml.toml", "a = = 1", "line 1"), ("escapes.toml", f'"{"a"}\\u001b[2J\\nerror: forged" = 1'),
            ("raw_escapes.toml", "x = '" + "\x1b[2J" + "'"), ("nested.toml", "a = " + "[" * 2000, "line 1"),
            ("deep_keys.toml", ".".join(["a"] * 2000) + " = 1"), ("infinite.toml", "confidence = inf", "confidence"),
            ("nan.toml", "max_harmful_drop = nan"), ("negative.toml", "min_prompts = -1", "min_prompts"),
            ("huge.toml", "min_prompts = 1e300", "min_prompts"), ("table.toml", "[confidence]\na = 1", "confidence"),
            ("not_utf8.toml", b"\xff\xfe")]:
        add("policy", name, data, 2, *words)


def configs():
    """config.json beside a good model."""
    for name, data, *words in [
            ("heads_0", {"num_attention_heads": 0, "hidden_size": WIDTH}),
            ("heads_negative", {"num_attention_heads": -1, "hidden_size": WIDTH}),
            ("heads_huge", {"num_attention_heads": 1 << 63, "num_key_value_heads": 1 << 63, "head_dim": 1 << 62}),
            ("size_0", {"hidden_size": 0, "num_hidden_layers": 0, "vocab_size": 0}),
            ("size_text", {"hidden_size": "8"}), ("list", []), ("nested", None)]:
        text = b'{"a":' * 600 if data is None else json.dumps(data)
        add("config", f"{name}.json", text, [0, 1, 2], *words)


def seeds(folder: pathlib.Path, kept: list[str]):
    """The same files, and good ones, in the form that each fuzz target takes."""
    def put(target: str, name: str, data: bytes):
        path = folder / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for entry in entries:
        data = (HERE / entry["file"]).read_bytes()
        name = entry["file"].replace("/", "_")
        if entry["kind"] == "model" and len(data) < 20000:
            for target in ("index", "trace", "bake") + (("quantised",) if "nbits" in name or "experts" in name else ()):
                put(target, name, data)
        elif entry["kind"] == "direction":
            put("direction", name, data)
        elif entry["kind"] == "policy":
            put("policy", name, data)
        elif entry["kind"] == "template":
            put("chat", name, b"\x00" + data)
        elif entry["kind"] == "tokenizer":
            put("chat", name, b"\x02" + data)
        elif entry["kind"] == "prompt":
            kinds = ["json", "jsonl", "csv", "txt"]
            if name.rsplit(".")[-1] in kinds:
                put("prompts", name, bytes([kinds.index(name.rsplit(".")[-1])]) + data)
    two = Graph(2).model().SerializeToString()
    for target in ("index", "trace", "bake"):
        put(target, "two_layers", two)
    for bits in (2, 4, 8):
        put("quantised", f"nbits_{bits}", good_quantised(bits))
    for name, data in more_quantised():
        put("quantised", name, data)
    put("quantised", "dequantised", good_dequantised())
    for i, template in enumerate(kept):
        put("chat", f"template_{i}", b"\x00" + template.encode())
    put("chat", "tokenizer", b"\x02" + json.dumps(tokenizer()).encode())
    put("chat", "config", b"\x03" + json.dumps({"bos_token": "<s>", "added_tokens_decoder": {"20": {
        "content": "<x>", "special": True}}}).encode())
    for i, text in enumerate(['["a", {"instruction": "b", "input": "c"}]', '{"messages": [{"role": "user", "content": "a"}]}',
                              'prompt,label,type\na,safe,x\nb,unsafe,contrast_x\n', "a\nb\n"]):
        put("prompts", f"good_{i}", bytes([i]) + text.encode())
    vector = np.arange(1, 9, dtype=np.float32)
    put("direction", "good.npy", npy("<f4", "(8,)", vector.tobytes()))
    one = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
    put("direction", "good.safetensors", safetensors({"__metadata__": {
        "lancet.strength": "0.5", "lancet.addition_layer": "1", "lancet.addition_alpha": "1"}, "direction": one,
        "addition": {**one, "data_offsets": [32, 64]}}, vector.tobytes() * 2))
    put("policy", "good", b"confidence = 0.9\nmax_harmful_drop = 0.1\nmax_perplexity_ratio = 'off'\n")
    put("policy", "flag", b"min_prompts=10")
    seeds_of_fixtures(put)


def seeds_of_fixtures(put):
    """The models of fixtures/zoo and fixtures/quant whose weights, put into the file, leave it below 60 kB."""
    fixtures = HERE.parent
    for kind in ("zoo", "quant"):
        for path in sorted((fixtures / kind).rglob("*.onnx")):
            data = onnx.load(str(path)).SerializeToString()
            if len(data) < 60_000:
                quantised = kind == "quant" or "int" in path.parent.name
                smaller = ("index", "trace") if len(data) < 40_000 else ()
                for target in ("quantised" if quantised else "bake", *smaller):
                    put(target, "good_" + "_".join(path.relative_to(fixtures).parts), data)


def good_quantised(bits: int) -> bytes:
    def change(model):
        product = next(n for n in model.graph.node if "down.0" in n.input)
        rng = np.random.default_rng(2)
        packed = rng.integers(0, 255, (WIDTH, 1, 16 * bits // 8), np.uint8)
        model.graph.initializer.extend([numpy_helper.from_array(packed, "down.q"),
                                        numpy_helper.from_array(np.full(WIDTH, 0.1, np.float32), "down.s")])
        product.CopyFrom(helper.make_node("MatMulNBits", [product.input[0], "down.q", "down.s"], list(product.output),
                                          name="down", domain="com.microsoft", K=2 * WIDTH, N=WIDTH, bits=bits,
                                          block_size=16))
    return changed(change)


def more_quantised():
    """Models with one quantised weight each, of the other layouts."""
    rng = np.random.default_rng(4)

    def codes(name, *shape, dtype=np.uint8):
        return numpy_helper.from_array(rng.integers(-100 if dtype == np.int8 else 0, 100, shape, dtype), name)

    def floats(name, *shape):
        return numpy_helper.from_array(np.full(shape, 0.1, np.float32), name)

    def with_product(kind, inputs, tensors, before=(), after=(), opset=18, weight="down.0", **attributes):
        """The model whose product with `weight` is another node; `x` and `y` stand for its ends in what is given."""
        def change(model):
            product = next(n for n in model.graph.node if weight in n.input)
            at, ends = list(model.graph.node).index(product), {"x": product.input[0], "y": product.output[0]}
            quantised = helper.make_node(kind, inputs, ["p" if after else "y"], **attributes)
            for one in [*before, quantised, *after]:
                at += 1
                inputs_here, outputs = ([ends.get(name, name) for name in names] for names in (one.input, one.output))
                inner = helper.make_node(one.op_type, inputs_here, outputs, name=f"{one.op_type}.{at}")
                inner.attribute.extend(one.attribute)
                inner.domain = "com.microsoft" if one.op_type in MICROSOFT else ""
                model.graph.node.insert(at, inner)
            model.graph.node.remove(product)
            model.graph.initializer.remove(find(model, weight))
            model.graph.initializer.extend(tensors)
            model.opset_import[0].version = opset
        return changed(change)

    k, n = 2 * WIDTH, WIDTH
    for kind in (0, 1):
        yield f"bnb4_{kind}", with_product(
            "MatMulBnb4", ["x", "q", "s"], [codes("q", n * k // 2), floats("s", 2)], K=k, N=n, block_size=16,
            quant_type=kind)
    zeros = [codes("q", n, 1, 8), floats("s", n), codes("z", n)]
    yield "nbits_zeros", with_product("MatMulNBits", ["x", "q", "s", "z"], zeros, K=k, N=n, bits=4, block_size=16)
    zeros[2] = floats("z", n)
    yield "nbits_float_zeros", with_product("MatMulNBits", ["x", "q", "s", "z"], zeros, K=k, N=n, bits=4, block_size=16)
    index = [codes("q", n, 1, 8), floats("s", n), numpy_helper.from_array(np.zeros(k, np.int32), "g")]
    yield "nbits_index", with_product("MatMulNBits", ["x", "q", "s", "", "g"], index, K=k, N=n, bits=4, block_size=16)
    dynamic = [codes("q", k, n, dtype=np.int8), floats("s", n), codes("z", n, dtype=np.int8)]
    yield "dynamic", with_product("DynamicQuantizeMatMul", ["x", "q", "s", "z"], dynamic)
    quantise = helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"])
    scale = [helper.make_node("Cast", ["p"], ["pf"], to=1), helper.make_node("Mul", ["xs", "s"], ["ps"]),
             helper.make_node("Mul", ["pf", "ps"], ["y"])]
    yield "integers", with_product("MatMulInteger", ["xq", "q", "xz", "z"], dynamic, [quantise], scale)
    yield "integers_to_float", with_product(
        "MatMulIntegerToFloat", ["xq", "q", "xs", "s", "xz", "z"], dynamic, [quantise])
    block = [codes("q", k, n, dtype=np.int8), floats("s", 2, n)]
    unpack = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=4)
    yield "dequantised_blocks", with_product("MatMul", ["x", "w"], block, [unpack], opset=21)
    experts = [codes("q1", 2, k, n // 2), floats("s1", 2, k), codes("q2", 2, n, k // 2), floats("s2", 2, n)]
    route = [helper.make_node("MatMul", ["x", "route"], ["r3"]), helper.make_node("Reshape", ["r3", "rows"], ["r"])]
    experts += [floats("route", n, 2), numpy_helper.from_array(np.array([-1, 2]), "rows")]
    yield "experts", with_product("QMoE", ["x", "r", "q1", "s1", "", "q2", "s2"], experts, route, weight="o.0", k=1,
                                  expert_weight_bits=4, activation_type="relu")

    def looked_up(model):
        lookup = next(n for n in model.graph.node if n.op_type == "Gather")
        lookup.CopyFrom(helper.make_node("GatherBlockQuantized", ["q", "input_ids", "s"], list(lookup.output),
                                         name="lookup", domain="com.microsoft", bits=4, block_size=16, quantize_axis=1))
        model.graph.initializer.remove(find(model, "embed"))
        model.graph.initializer.extend([codes("q", VOCABULARY, WIDTH // 2), floats("s", VOCABULARY, 1)])
    yield "lookup", changed(looked_up)


MICROSOFT = ("MatMulNBits", "MatMulBnb4", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QMoE")


def good_dequantised() -> bytes:
    def change(model):
        product = next(n for n in model.graph.node if "down.0" in n.input)
        rng = np.random.default_rng(3)
        model.graph.initializer.extend([
            numpy_helper.from_array(rng.integers(-127, 127, (2 * WIDTH, WIDTH), np.int8), "down.q"),
            numpy_helper.from_array(np.full(WIDTH, 0.1, np.float32), "down.s"),
            numpy_helper.from_array(np.zeros(WIDTH, np.int8), "down.z")])
        at = list(model.graph.node).index(product)
        product.input[1] = "down.f"
        model.graph.node.insert(at, helper.make_node("DequantizeLinear", ["down.q", "down.s", "down.z"], ["down.f"],
                                                     name="dequantise", axis=1))
    return changed(change)


def main():
    models()
    directions()
    kept = templates()
    tokenizers()
    prompts()
    policies()
    configs()
    (HERE / "tiny_tokenizer.json").write_text(json.dumps(tokenizer(), separators=(",", ":")))
    known = {entry["file"] for entry in entries} | {
        "tiny_tokenizer.json", "expected.json", "found.json", "README.md"}
    for path in HERE.rglob("*"):
        if path.is_file() and path.relative_to(HERE).as_posix() not in known and not path.name.startswith("found_"):
            path.unlink()
    found = HERE / "found.json"
    text = ",\n ".join(json.dumps(entry) for entry in entries + (json.loads(found.read_text()) if found.exists() else []))
    (HERE / "expected.json").write_text(f"[\n {text}\n]\n")
    if os.environ.get("SEEDS"):
        seeds(pathlib.Path(os.environ["SEEDS"]), kept)


if __name__ == "__main__":
    main()
