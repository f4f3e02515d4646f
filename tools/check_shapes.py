"""Holds Lancet's operator table to other readers of the same graphs, on every .onnx file under a folder.

For each value whose element type, rank or last dimension both know, the two must agree. The other readers are
`onnx.shape_inference` (strict, with data propagation, declarations inside the graph removed first) and ONNX Runtime, which is
asked for every value as an output of the graph and knows its own operators as well.

    cargo build --release --example dump_types
    python tools/check_shapes.py [FOLDER] [--dump target/release/examples/dump_types]

Needs onnx and onnxruntime. Exits with 1 where there is a contradiction.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys

import onnx
import onnxruntime

TYPES = {"float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "string": 8, "bool": 9,
         "float16": 10, "double": 11, "uint32": 12, "uint64": 13, "bfloat16": 16, "uint4": 21, "int4": 22}


def by_onnx(path):
    """`{name: (type, dims or None)}` from `onnx.shape_inference`, and whether strict mode went through."""
    model = onnx.load(path)
    del model.graph.value_info[:]
    strict = True
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception:  # operators that are not of the standard, or a model above 2 GiB
        strict = False
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {}
    for info in model.graph.value_info:
        tensor = info.type.tensor_type
        dims = None
        if tensor.HasField("shape"):
            dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        found[info.name] = (tensor.elem_type or None, dims)
    return found, strict


def by_runtime(path):
    """The same from ONNX Runtime; `{}` where it does not load the graph with every value returned."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.value_info[:]
    known = {o.name for o in model.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known:
                known.add(name)
                model.graph.output.add().name = name
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    probe = path.parent / ".check_shapes.onnx"  # beside the model, where its external data is
    try:
        onnx.save(model, probe)
        session = onnxruntime.InferenceSession(str(probe), options, providers=["CPUExecutionProvider"])
    except Exception:
        return {}
    finally:
        probe.unlink(missing_ok=True)
    found = {}
    for output in session.get_outputs():
        kind = output.type
        code = TYPES.get(kind[7:-1]) if kind.startswith("tensor(") else None
        dims = [d if isinstance(d, int) else None for d in output.shape] if output.shape else None
        found[output.name] = (code, dims)
    return found


def compare(ours, theirs, counts, report):
    for name, (code, dims) in theirs.items():
        if name not in ours:
            continue
        one = ours[name]
        last = dims[-1] if dims else None
        pairs = [("type", one["type"], code), ("rank", one["rank"], len(dims) if dims is not None else None),
                 ("last", one["last"], last)]
        for what, mine, other in pairs:
            if mine is None and other is None:
                counts[what, "neither"] += 1
            elif mine is None or other is None:
                counts[what, "only Lancet" if other is None else "only the other"] += 1
            elif mine == other:
                counts[what, "agree"] += 1
            else:
                counts[what, "contradict"] += 1
                report(f"{what} of `{name}` ({one['op']}): Lancet {mine}, the other {other}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="fixtures", type=pathlib.Path)
    parser.add_argument("--dump", default="target/release/examples/dump_types")
    options = parser.parse_args()
    totals = {"onnx": collections.Counter(), "runtime": collections.Counter()}
    files = collections.Counter()
    unknown = collections.Counter()
    for path in sorted(options.folder.rglob("*.onnx")):
        dumped = subprocess.run([options.dump, str(path)], capture_output=True, text=True)
        files["all"] += 1
        if dumped.returncode != 0:
            files["not opened"] += 1
            print(f"{path}: {dumped.stderr.strip()}")
            continue
        ours = {one["name"]: one for one in map(json.loads, dumped.stdout.splitlines())}
        unknown.update(one["op"] for one in ours.values() if not one["known"])
        theirs, strict = by_onnx(path)
        files["strict"] += strict
        compare(ours, theirs, totals["onnx"], lambda text: print(f"{path}: onnx: {text}"))
        theirs = by_runtime(path)
        files["run"] += bool(theirs)
        compare(ours, theirs, totals["runtime"], lambda text: print(f"{path}: runtime: {text}"))
    print(f"{files['all']} files, {files['strict']} in strict mode, {files['run']} loaded by ONNX Runtime with every value")
    for reader, counts in totals.items():
        for what in ("type", "rank", "last"):
            row = {kind: n for (of, kind), n in sorted(counts.items()) if of == what}
            print(f"{reader}, {what}: " + ", ".join(f"{kind} {n}" for kind, n in row.items()))
    print("operators that are not in the table:", dict(unknown) or "none")
    sys.exit(any(kind == "contradict" and n for counts in totals.values() for (_, kind), n in counts.items()))


main()
