"""Run an exported model in ONNX Runtime against the reference, and keep the index of what was exported.

Used by the export_*.py scripts; needs only numpy, safetensors and onnxruntime, so that it works beside every
version of transformers.
"""

import argparse
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
          "tensor(int32)": np.int32, "tensor(bool)": np.bool_}
# Families with a learned position embedding: a second embedding writes to the residual stream.
LEARNED_POSITIONS = {"gpt2", "gpt_neo", "gpt_bigcode", "opt", "xglm", "biogpt"}


def one_line(error: BaseException, limit: int = 300) -> str:
    """The first cause of an error as one line of at most `limit` characters, with its class."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"(/[^/\s\"']+)+/(?=site-packages/|fixtures/)", "", f"{type(error).__name__}: {error}")
    return " ".join(text.split())[:limit]


def versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


def writers(config: dict[str, Any]) -> dict[str, int]:
    """How many tensors write to the residual stream, from a Hugging Face config."""
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    layers = next(config[name] for name in names if name in config)
    embeddings = 2 if config["model_type"] in LEARNED_POSITIONS else 1
    return {"layers": layers, "embeddings": embeddings, "attn": layers, "mlp": layers}


def feed(
    session: onnxruntime.InferenceSession, ids: np.ndarray, past: int, head_size: int | None,
) -> dict[str, np.ndarray]:
    """Inputs for a first pass over `ids`: positions from 0, caches of length `past` that hold nothing.

    `head_size` is for genai files, which leave the last dimension of the caches symbolic.
    """
    batch, length = ids.shape
    out = {}
    for item in session.get_inputs():
        kind = DTYPES.get(item.type)
        if kind is None:
            raise TypeError(f"input {item.name} is {item.type}")
        if item.name in ("input_ids", "l_input_ids_"):
            value = ids
        elif item.name == "attention_mask":
            value = np.ones((batch, length))
        elif item.name == "position_ids":
            value = np.broadcast_to(np.arange(length), (batch, length))
        elif item.name == "use_cache_branch":
            value = np.zeros(1)
        elif item.name.startswith("past"):
            # Fixed dimensions are heads and head size; the first symbolic one is the batch (times heads
            # in the old fused layouts), any other is the length of the past.
            shape = [d if isinstance(d, int) else head_size if d == "kv_cache_dim" else past for d in item.shape]
            if not isinstance(item.shape[0], int):
                shape[0] = batch
            value = np.zeros(shape)
        else:
            raise ValueError(f"unknown input {item.name} {item.type} {item.shape}")
        out[item.name] = np.ascontiguousarray(value.astype(kind))
    return out


def logits_error(model: pathlib.Path, reference: dict[str, np.ndarray]) -> tuple[float, str | None]:
    """Largest difference of the model's logits to the reference logits, and what had to be done to run it.

    Caches are empty; where a sliding cache refuses that, they have a capacity that nothing fills. Where a batch
    fails, the rows run one by one.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = "logits" if "logits" in names else names[0]
    ids, want = reference["input_ids"], reference["logits"]
    genai = model.parent / "genai_config.json"
    head_size = json.loads(genai.read_text())["model"]["decoder"]["head_size"] if genai.exists() else None

    def run(rows: np.ndarray, past: int) -> np.ndarray:
        return session.run([wanted], feed(session, rows, past, head_size))[0].astype(np.float32)

    attempts = {
        None: lambda: run(ids, 0),
        "run with a past of capacity 64": lambda: run(ids, 64),
        "runs at batch 1 only": lambda: np.concatenate([run(row[None], 0) for row in ids]),
    }
    first = None
    for note, attempt in attempts.items():
        try:
            error = float(np.abs(attempt() - want).max())
        except Exception as failure:
            first = first or failure
            continue
        if not np.isfinite(error):
            raise FloatingPointError("logits are not finite")
        return error, note
    raise first


def record(out: pathlib.Path, entry: dict[str, Any]) -> None:
    """Put one entry into out/index/<exporter>.json, in place of an older one of the same architecture."""
    path = out / "index" / f"{entry['exporter']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text()) if path.exists() else []
    entries = [e for e in entries if e["arch"] != entry["arch"]] + [entry]
    path.write_text(json.dumps(sorted(entries, key=lambda e: e["arch"]), indent=1) + "\n")


def deliver(
    arch: str, exporter: str, dtype: str, packages: dict[str, str], out: pathlib.Path,
    export: Callable[[pathlib.Path], None], work: pathlib.Path, keep: Iterable[str] = (), limit: float = 0.05,
) -> None:
    """Run `export(folder)`, keep the model, its data and the named files, measure it and record the result.

    A model that ONNX Runtime calls invalid, or whose logits are more than `limit` off, is not kept.
    """
    target = out / arch / exporter
    reference = load_file(out / arch / "reference.safetensors")
    config = json.loads((out / arch / "config.json").read_text())
    entry: dict[str, Any] = {"arch": arch, "exporter": exporter, "versions": packages, "dtype": dtype,
                             "model": None, "error": None, "base_error": None, **writers(config)}
    for folder in (target, work):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        export(work)
        models = [p for p in work.iterdir() if p.suffix == ".onnx"]
        if len(models) != 1:
            raise RuntimeError(f"the export made {sorted(p.name for p in models)}")
        for path in work.iterdir():
            if ".onnx" in path.name or path.name in keep:
                shutil.copyfile(path, target / path.name)
        model = target / models[0].name
        try:
            entry["base_error"], note = logits_error(model, reference)
            entry.update({"note": note} if note else {})
        except Exception as error:
            if type(error).__name__ in ("Fail", "InvalidGraph"):
                raise
            entry["run_error"] = one_line(error)
        if (entry["base_error"] or 0) > limit:
            raise ValueError(f"the exported model's logits are {entry['base_error']:.2g} off")
        entry["model"] = str(model.relative_to(out))
        entry["bytes"] = sum(p.stat().st_size for p in target.iterdir())
    except Exception as error:
        entry["error"] = one_line(error)
        shutil.rmtree(target)
    shutil.rmtree(work, ignore_errors=True)
    record(out, entry)
    shown = entry["error"] or entry.get("run_error") or f"base error {entry['base_error']:.1e} {entry.get('note', '')}"
    print(f"{exporter:22s} {arch:12s} {entry.get('bytes', 0):7d} bytes  {shown}", flush=True)


def parser(doc: str, exporters: Iterable[str]) -> argparse.ArgumentParser:
    """The options that every export script takes."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--weights", type=pathlib.Path, default=ROOT / "target" / "zoo" / "weights",
                      help="folder of <arch>/ with config.json and model.safetensors, made by models.py")
    made.add_argument("--out", type=pathlib.Path, default=ROOT / "fixtures" / "zoo")
    made.add_argument("--work", type=pathlib.Path, default=ROOT / "target" / "zoo" / "work",
                      help="scratch folder, emptied as it goes")
    made.add_argument("--only", type=lambda text: set(text.split(",")), help="architectures, by comma")
    made.add_argument("--exporter", type=lambda text: set(text.split(",")), default=set(exporters),
                      help=f"any of {', '.join(exporters)}, by comma")
    return made


def chosen(table: dict[str, list[str]], args: argparse.Namespace) -> list[tuple[str, str]]:
    """The (exporter, architecture) pairs of the table that the options ask for and whose weights exist."""
    pairs = []
    for exporter, archs in table.items():
        if exporter not in args.exporter:
            continue
        for arch in archs:
            if args.only is not None and arch not in args.only:
                continue
            if not (args.weights / arch / "config.json").exists():
                print(f"{exporter:18s} {arch:18s} no weights, left out")
                continue
            pairs.append((exporter, arch))
    return pairs
