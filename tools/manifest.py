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
    ("chat", "tools/train_chat_model.py, tools/export_chat_models.py"),
    ("prompts/", "written by hand"),
]


def main():
    files = {}
    for path in sorted((ROOT / "fixtures").rglob("*")):
        name = path.relative_to(ROOT / "fixtures").as_posix()
        if not path.is_file() or name == "MANIFEST.json":
            continue
        data = path.read_bytes()
        by = "written by hand" if name.endswith("README.md") else next(by for start, by in MADE_BY if name.startswith(start))
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "made_by": by}
    text = json.dumps({"files": files}, indent=1) + "\n"
    (ROOT / "fixtures" / "MANIFEST.json").write_text(text)


if __name__ == "__main__":
    main()
