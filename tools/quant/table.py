"""Measure what the documents say about quantised models, and write the tables into docs/quantised.md.

  python tools/quant/table.py --lancet target/release/lancet [--only formats|chat|widths] [--max-new-tokens 32]

`formats`: every file of fixtures/quant baked by its direction (`lancet bake --json`), and judged by check.py's numbers
in float64. `chat`: the bundled chat model in every form (fixtures/chat, chat-fp16, chat-package, chat-genai-int4), baked by
the direction of fixtures/chat/reference.safetensors, and beside it the same with nearest rounding in place of Lancet's
(check.py's write_nearest: the base's grid, every writer's `W - r r^T W` to its nearest levels), all of them answered by
`lancet eval --json` on fixtures/chat/prompts.

`widths`: a random matrix (normal, standard deviation 0.02) of each width that ONNX Runtime's MatMulNBitsQuantizer has
brought to 4 bits (block 32, symmetric), baked by a random direction, beside the least error that any rounding to its grid can
have (check.py's `least_error`).

A table stands between `<!-- NAME -->` and `<!-- end -->`. Runs in environment A of tools/zoo/README.md.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import check
import numpy as np
import onnx
import readers
from common import FIXTURES, QUANT, ROOT
from safetensors.numpy import load_file, save_file

CONFIGS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
           "special_tokens_map.json", "chat_template.jinja")
WIDTHS = (256, 512, 1024, 2048, 4096)
CLASSES = ("pseudo_harmful", "harmful", "harmless")


def run(*command: str | pathlib.Path) -> dict:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


def bake(lancet: pathlib.Path, model: pathlib.Path, direction: pathlib.Path, out: pathlib.Path,
         mode: str = "auto") -> list[dict]:
    """Bakes a model; the edits."""
    shutil.rmtree(out, ignore_errors=True)
    return run(lancet, "bake", model, "--direction", direction, "--output", out, "--quantised", mode, "--json")["variants"][0]["bake"]["edits"]


def baked_matrices(base: pathlib.Path, baked: pathlib.Path, direction: np.ndarray) -> tuple:
    """(base, baked, [(matrix before, after)] of the quantised matrices that changed, their numbers by check.py)."""
    old, new = onnx.load(str(base)), onnx.load(str(baked))
    after = {m.key: m for m in readers.matrices(new, True)}
    unit = direction.astype(np.float64) / np.linalg.norm(direction.astype(np.float64))
    moved = [(m, after[m.key]) for m in readers.matrices(old, True) if m.key in after and check.changed(m, after[m.key])]
    return old, new, moved, [check.judged(a, b, unit) for a, b in moved], unit


def span(values: list[float], style: str) -> str:
    """The largest of a column, or nothing."""
    if values and "g" in style and max(values) >= 99.5:
        style = style.replace(".2g", ".0f")
    return style.format(max(values)) if values else ""


# --- the random formats -----------------------------------------------------------------------------------------------

def formats(lancet: pathlib.Path, folder: pathlib.Path) -> list[str]:
    direction = load_file(QUANT / "direction.safetensors")["direction"]
    lines = ["| file | operator | bits | block | nearest leaves | Lancet leaves | error over nearest | scales grown | treatment |",
             "|---|---|---|---|---|---|---|---|---|"]
    for entry in json.loads((QUANT / "index.json").read_text()):
        base = QUANT / entry["file"]
        start = f"| `{entry['name']}` | {entry['format']} | {entry['bits']} | {entry['block'] or ''} |"
        try:
            edits = bake(lancet, base, QUANT / "direction.safetensors", folder / "out")
        except RuntimeError:
            lines.append(f"{start} | | | | refused |")
            continue
        rows = baked_matrices(base, folder / "out" / base.name, direction)[3]
        rounded = sorted({e["writer"] for e in edits if e["treatment"] == "rounded"})
        nodes = [e for e in edits if e["treatment"] == "nodes"]
        words = [f"{len(rounded)} rounded"] if rounded else []
        if nodes:
            words.append(f"{len(nodes)} by nodes ({'; '.join(sorted({why(e['reason']) for e in nodes}))})")
        lines.append(f"{start} {span([100 * r['nearest'] for r in rows], '{:.2g} %')} "
                     f"| {span([100 * r['after'] for r in rows], '{:.2g} %')} "
                     f"| {span([r['error'] for r in rows], '{:.3f}')} "
                     f"| {span([100 * r['scales'] for r in rows], '{:.0f} %')} | {', '.join(words)} |")
    return lines


def why(reason: str) -> str:
    """The reason of nodes in a word or two."""
    for word, short in (("too coarsely", "past the limits"), ("tied to", "tied"), ("g_idx", "zero points beside g_idx"),
                        ("prepacked", "packed for one provider"), ("also read", "shared")):
        if word in reason:
            return short
    return reason


# --- the chat model in every form -------------------------------------------------------------------------------------

def chat(lancet: pathlib.Path, folder: pathlib.Path, tokens: int) -> list[str]:
    save_file({"direction": np.ascontiguousarray(check.chat_direction())}, folder / "d.safetensors")
    direction = check.chat_direction()
    variants = {"model.onnx (float32)": FIXTURES / "chat" / "model.onnx",
                "model_fp16.onnx": FIXTURES / "chat-fp16" / "model.onnx"}
    variants |= {path.name: path for path in sorted((FIXTURES / "chat-package" / "onnx").glob("*.onnx"))}
    variants["genai int4"] = FIXTURES / "chat-genai-int4" / "model.onnx"
    lines = ["| variant | treatment | pseudo-harmful refused | its refusal score | harmful refused | harmless refused "
             "| nearest leaves | Lancet leaves | error over nearest |", "|---|---|---|---|---|---|---|---|---|"]
    for name, path in variants.items():
        home = folder / "model"
        shutil.rmtree(home, ignore_errors=True)
        if (path.parent / "genai_config.json").exists():
            shutil.copytree(path.parent, home)  # its heads are padded: the chat model's config is not its own
        else:
            home.mkdir()
            for source in (path, *(FIXTURES / "chat" / config for config in CONFIGS)):
                shutil.copy(source, home)
        edits = bake(lancet, home, folder / "d.safetensors", folder / "out")
        rows = baked_matrices(home / path.name, folder / "out" / path.name, direction)[3]
        measured = [classes(lancet, home, tokens), classes(lancet, folder / "out", tokens)]
        if rows:
            # every quantised writer rounded, those too that `auto` leaves to nodes
            bake(lancet, home, folder / "d.safetensors", folder / "nearest", "round")
            old, new, moved, _, unit = baked_matrices(home / path.name, folder / "nearest" / path.name, direction)
            for stale in (folder / "nearest").glob(path.name + "*"):
                stale.unlink()
            check.write_nearest(old, new, moved, unit, folder / "nearest" / path.name)
            measured.append(classes(lancet, folder / "nearest", tokens))
        count = {t: sum(e["treatment"] == t for e in edits) for t in ("weights", "rounded", "nodes")}
        told = ", ".join(f"{n} {'by nodes' if t == 'nodes' else t}" for t, n in count.items() if n)
        cells = [span_of([100 * m[kind]["refusal_rate"] for m in measured], ".1f") + " %" for kind in CLASSES]
        cells.insert(1, span_of([m[CLASSES[0]]["mean_refusal_score"] for m in measured], "+.2f"))
        lines.append(f"| {name} | {told} | {' | '.join(cells)} | {span([100 * r['nearest'] for r in rows], '{:.2g} %')} "
                     f"| {span([100 * r['after'] for r in rows], '{:.2g} %')} | {span([r['error'] for r in rows], '{:.3f}')} |")
        print(lines[-1], flush=True)
    return lines


def span_of(values: list[float], style: str) -> str:
    """`before → after`, and nearest rounding's behind a comma where there is any."""
    texts = [format(value, style) for value in values]
    return " → ".join(texts[:2]) + "".join(f", {text}" for text in texts[2:])


def classes(lancet: pathlib.Path, model: pathlib.Path, tokens: int) -> dict[str, dict]:
    """Refusal rate and mean refusal score of each class."""
    return run(lancet, "eval", model, "--prompts", FIXTURES / "chat" / "prompts", "--refusal-tokens", "I,As",
               "--max-new-tokens", str(tokens), "--json")["variants"][0]["eval"]["classes"]


# --- 4 bits by width --------------------------------------------------------------------------------------------------

def widths(lancet: pathlib.Path, folder: pathlib.Path) -> list[str]:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    sys.path.insert(0, str(ROOT / "tools" / "bench"))
    import bake as bench
    lines = ["| width | nearest leaves | Lancet leaves | error over nearest | over the least | of the grid's noise "
             "| `auto` |", "|---|---|---|---|---|---|---|"]
    for width in WIDTHS:
        for name, value in (("LAYERS", 1), ("WIDTH", width), ("INNER", 256), ("VOCAB", 64)):
            setattr(bench, name, value)
        plain, path = folder / "plain.onnx", folder / f"w{width}.onnx"
        bench.make_model(plain, 0)
        quantizer = MatMulNBitsQuantizer(onnx.load(str(plain)), block_size=32, is_symmetric=True)
        quantizer.process()
        onnx.save(quantizer.model.model, str(path))
        direction = np.random.default_rng(1).standard_normal(width).astype(np.float32)
        save_file({"direction": direction}, folder / "d.safetensors")
        treatments = {e["treatment"] for e in bake(lancet, path, folder / "d.safetensors", folder / "auto")
                      if e["treatment"] in ("rounded", "nodes")}
        edits = bake(lancet, path, folder / "d.safetensors", folder / "out", "round")
        noise = max(e["error"] / e["grid_noise"] for e in edits if e["treatment"] == "rounded")
        rows = baked_matrices(path, folder / "out" / path.name, direction)[3]
        lines.append(f"| {width} | {span([100 * r['nearest'] for r in rows], '{:.2g} %')} "
                     f"| {span([100 * r['after'] for r in rows], '{:.2g} %')} "
                     f"| {span([r['error'] for r in rows], '{:.3f}')} | {span([r['over'] for r in rows], '{:.3f}')} "
                     f"| {noise:.2f} | {', '.join(sorted(treatments))} |")
        print(lines[-1], flush=True)
    return lines


def put(name: str, lines: list[str]) -> None:
    """Replaces a table of docs/quantised.md."""
    path = ROOT / "docs" / "quantised.md"
    text = path.read_text()
    head, rest = text.split(f"<!-- {name} -->\n", 1)
    tail = rest.split("<!-- end -->", 1)[1]
    path.write_text(head + f"<!-- {name} -->\n" + "\n".join(lines) + "\n<!-- end -->" + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lancet", type=pathlib.Path, required=True)
    parser.add_argument("--only", choices=("formats", "chat", "widths"))
    parser.add_argument("--max-new-tokens", type=int, default=32)
    args = parser.parse_args()
    lancet = pathlib.Path(os.path.abspath(args.lancet))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if args.only in (None, "formats"):
            put("formats", formats(lancet, folder))
        if args.only in (None, "widths"):
            put("widths", widths(lancet, folder))
        if args.only in (None, "chat"):
            put("chat", chat(lancet, folder, args.max_new_tokens))


if __name__ == "__main__":
    main()
