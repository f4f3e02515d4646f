"""Wrap the prose of Markdown files at 100 characters, in place.

    python tools/wrap_docs.py [FILE ...]      all documents that tests/documents.rs looks at, or those named

Headings, tables, code, HTML comments and what is generated stay as they are. Code spans are not broken unless they are
nearly a line long.
"""

import re
import sys
from pathlib import Path

WIDTH = 100
ROOT = Path(__file__).resolve().parent.parent
# made by commands: `cargo run --release --example architectures`, and the tests of src/report/schema.rs
GENERATED = {"docs/architectures.md"}
GENERATED_AFTER = "<!-- fields: generated"

ITEM = re.compile(r"^(\s*)([-*+]|\d+[.)])(\s+)(.*)$")
# what would begin a list, a heading, a quotation or a table at the start of a line
STARTS = re.compile(r"^([-*+>#|]|\d+[.)]|=+|#+)$")


def words(text):
    """The text cut at spaces; code spans are kept whole unless they are long, and nothing begins a line that would turn
    it into a list or a heading."""
    out, held = [], ""
    for word in text.split():
        held = f"{held} {word}" if held else word
        if held.count("`") % 2 and len(held) < WIDTH - 10:
            continue
        if out and STARTS.match(held):
            out[-1] += f" {held}"
        else:
            out.append(held)
        held = ""
    if held:
        out.append(held)
    return out


def wrap(text, first, rest):
    lines, line = [], first
    empty = True
    for word in words(text):
        if not empty and len(line) + 1 + len(word) > WIDTH:
            lines.append(line)
            line, empty = rest, True
        line += word if empty else f" {word}"
        empty = False
    lines.append(line)
    return lines


def wrapped(text):
    out, block, first, rest = [], [], "", ""
    fence, comment, generated = None, False, False

    def flush():
        nonlocal block
        if block:
            out.extend(wrap(" ".join(block), first, rest))
        block = []

    for line in text.split("\n"):
        stripped = line.strip()
        generated |= stripped.startswith(GENERATED_AFTER)
        if generated or fence or comment:
            out.append(line)
            fence = None if fence and stripped.startswith(fence) else fence
            comment = comment and "-->" not in line
            continue
        if stripped.startswith(("```", "~~~")):
            flush()
            fence = stripped[:3]
            out.append(line)
            continue
        item = ITEM.match(line)
        if stripped.startswith(("|", "#", "<", ">", "---")) or not stripped:
            flush()
            comment = stripped.startswith("<!--") and "-->" not in stripped
            out.append(line)
            continue
        if item:
            flush()
            first = item[1] + item[2] + item[3]
            rest = " " * len(first)
            block = [item[4]]
            continue
        if not block:
            indent = line[: len(line) - len(line.lstrip())]
            if len(indent) >= 4:
                out.append(line)  # code by indentation
                continue
            first = rest = indent
        block.append(stripped)
    flush()
    return "\n".join(out)


def documents():
    names = ["*.md", "docs/*.md", "tools/*/README.md", "src/docs/*.md"]
    return sorted(path for name in names for path in ROOT.glob(name))


def main():
    for path in [Path(name).resolve() for name in sys.argv[1:]] or documents():
        if str(path.relative_to(ROOT)) in GENERATED:
            continue
        before = path.read_text()
        after = wrapped(before)
        if after != before:
            path.write_text(after)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
