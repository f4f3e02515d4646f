"""Write fixtures/MANIFEST.json: every fixture file with its size, SHA-256 and the script that made it.

    python tools/manifest.py
"""

import hashlib
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
MADE_BY = [
    ("chat/prompts/", "tools/make_chat_prompts.py"),
    ("chat/reference", "tools/reference.py"),
    ("chat-package", "tools/quant/chat_package.py"),
    ("chat-genai-int4", "tools/quant/chat_genai.py"),
    ("quant/genai-", "tools/quant/random_genai.py"),
    ("quant/", "tools/quant/random_models.py"),
    ("scores/expected.json", "tools/scores_reference.py"),
    ("scores/", "written for this project"),
    ("chat", "tools/train_chat_model.py, tools/export_chat_models.py"),
    ("prompts/", "written by hand"),
    ("directions/", "tools/make_direction_files.py"),
    ("generation/", "tools/generation_reference.py"),
    ("hostile/", "tools/make_hostile.py"),
]
ZOO = {
    "optimum": "export_optimum.py", "optimum121": "export_torch24.py", "torchscript": "export_torch24.py",
    "dynamo": "export_dynamo.py", "split": "export_dynamo.py", "genai": "export_genai.py",
    "ort": "export_optimized.py", "onnxslim": "export_optimized.py",
}


def zoo_script(parts: list[str]) -> str:
    """The script that makes a file of the zoo, from its path below fixtures/zoo."""
    if len(parts) == 2 and parts[0] != "index":
        return "tools/zoo/models.py"
    exporter = pathlib.PurePath(parts[1]).stem if parts[0] == "index" else parts[1]
    if exporter.endswith("-tf5"):
        return "tools/zoo/export_dynamo5.py"
    if exporter.startswith("dynamo-export24"):
        return "tools/zoo/export_torch24.py"
    family = exporter.split("-")[0]
    return f"tools/zoo/{ZOO['dynamo' if family.startswith('dynamo') else family]}"


def made_by(name: str) -> str:
    """Who made a fixture."""
    if name.endswith("README.md"):
        return "written by hand"
    if name.startswith("zoo/"):
        return zoo_script(name.split("/")[1:])
    return next(by for start, by in MADE_BY if name.startswith(start))


def main():
    files = {}
    for path in sorted((ROOT / "fixtures").rglob("*")):
        name = path.relative_to(ROOT / "fixtures").as_posix()
        if not path.is_file() or name == "MANIFEST.json":
            continue
        data = path.read_bytes()
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "made_by": made_by(name)}
    text = json.dumps({"files": files}, indent=1) + "\n"
    (ROOT / "fixtures" / "MANIFEST.json").write_text(text)


if __name__ == "__main__":
    main()
