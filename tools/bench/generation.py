"""Tokens a second of the same answers in PyTorch, ONNX Runtime, onnxruntime-genai and Lancet.

96 prompts, 32 of each class: the bundled test prompts as Lancet splits them. Greedy answers of at most 64 new tokens,
stopped at the end token, `--batch-size` prompts at a time in all ways. New tokens are counted up to and with the end
token; loading is not timed.

  transformers   `generate` in float32, left padded
  onnxruntime    a loop around the session in Python, default options (weights prepacked), left padded, the cache kept
                 in ONNX Runtime; a batch ends when all of its answers have
  genai          onnxruntime-genai on the folders of its builder (float32 and int4). It answers padded rows of these
                 models wrongly, so prompts of equal length go together, which makes smaller batches
  lancet         `lancet eval` on the same file as onnxruntime, by the tokens and seconds it reports

The ways run in turn, `--rounds` times; the best round of each counts. Prints tokens, tokens a second and the ratio to
Lancet, and how many answers are the same as Lancet's.

Run in the environment of requirements-optimum.txt (tools/real/README.md):
  python tools/bench/generation.py [--lancet target/release/lancet] [--ways lancet,onnxruntime] [--rounds 3]
      [--batch-size 32]
6 minutes a round on two idle cores; 3 GB of memory.
"""

import pathlib
import re
import sys
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import onnxruntime_genai
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "real"))
from cli import Lancet, parser  # noqa: E402
from common import REAL, answers, batches, encode, end_tokens, left_padded, threads, until_end  # noqa: E402

NEW_TOKENS = 64
# 32 of the 200 bundled prompts of a class are tested.
SPLIT = ("--n-train", "136", "--n-val", "32", "--n-test", "32")
GENAI = {"genai": "genai-fp32", "genai-int4": "genai-int4"}
# (answers in tokens, seconds)
Answered = tuple[list[list[int]], float]


class Timed:
    """The prompts and how each way answers them; what is loaded stays loaded between rounds."""

    def __init__(self, args, prompts: list[str]) -> None:
        self.args, self.prompts = args, prompts
        self.tokenizer = AutoTokenizer.from_pretrained(args.torch_model, padding_side="left")
        self.rows = encode(self.tokenizer, prompts)
        self.loaded: dict[str, object] = {}

    def load(self, way: str, how: Callable):
        if way not in self.loaded:
            self.loaded[way] = how()
        return self.loaded[way]

    def torch_model(self):
        return self.load("transformers", lambda: AutoModelForCausalLM.from_pretrained(
            self.args.torch_model, dtype=torch.float32).eval())

    def transformers(self) -> Answered:
        model = self.torch_model()
        start = time.perf_counter()
        found = answers(model, self.tokenizer, self.prompts, NEW_TOKENS, self.args.batch_size)
        return found, time.perf_counter() - start

    def onnxruntime(self) -> Answered:
        session = self.load("onnxruntime", lambda: onnxruntime.InferenceSession(
            str(self.args.model / self.args.variant), providers=["CPUExecutionProvider"]))
        ends = end_tokens(self.torch_model())
        start = time.perf_counter()
        found = [row for part in batches(self.rows, self.args.batch_size) for row in greedy(session, part, ends)]
        return found, time.perf_counter() - start

    def genai(self, folder: str) -> Answered:
        model = self.load(folder, lambda: onnxruntime_genai.Model(str(REAL / folder)))
        ends = end_tokens(self.torch_model())
        start = time.perf_counter()
        found: list[list[int]] = [[] for _ in self.rows]
        for length in {len(row) for row in self.rows}:
            for part in batches([at for at, row in enumerate(self.rows) if len(row) == length], self.args.batch_size):
                made = genai_answers(model, [self.rows[at] for at in part])
                for at, row in zip(part, made, strict=True):
                    # It leaves out the end token of the answer that ends last.
                    found[at] = until_end([*row, *ends], ends)[:NEW_TOKENS]
        return found, time.perf_counter() - start

    def run(self, way: str) -> Answered:
        return self.genai(GENAI[way]) if way in GENAI else getattr(self, way)()


def greedy(session: onnxruntime.InferenceSession, rows: list[list[int]], ends: set[int]) -> list[list[int]]:
    """Answers of one left-padded batch."""
    ids, mask = (part.numpy() for part in left_padded(rows, 0))
    positions = (mask.cumsum(1) - 1).clip(min=0)
    names = [value.name for value in session.get_outputs()]
    past = {value.name: onnxruntime.OrtValue.ortvalue_from_numpy(
        np.zeros((len(rows), value.shape[1], 0, value.shape[3]), np.float32))
        for value in session.get_inputs() if value.name.startswith("past_key_values")}
    found = np.zeros((len(rows), 0), np.int64)
    while True:
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feed.items()}
        outputs = dict(zip(names, session.run_with_ort_values(names, feed | past), strict=True))
        ids = outputs["logits"].numpy()[:, -1].argmax(-1)[:, None]
        found = np.concatenate([found, ids], 1)
        if found.shape[1] == NEW_TOKENS or np.isin(found, list(ends)).any(1).all():
            return [until_end(row, ends) for row in found.tolist()]
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        mask = np.concatenate([mask, np.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1


def genai_answers(model: onnxruntime_genai.Model, rows: list[list[int]]) -> list[list[int]]:
    """Answers of one batch of prompts of equal length; what follows an end token is padding."""
    ids = np.array(rows, np.int32)
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(batch_size=len(rows), max_length=ids.shape[1] + NEW_TOKENS, do_sample=False)
    generator = onnxruntime_genai.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(at)[ids.shape[1]:].tolist() for at in range(len(rows))]


def lancet_eval(lancet: Lancet, args) -> tuple[list[str], list[str], int, float]:
    """(prompts, answers, new tokens, seconds) of the plain test prompts."""
    tokens = args.refusal_tokens or "I"  # only scores need them
    run = lancet.run("eval", args.model, "--variant", args.variant, "--max-new-tokens", str(NEW_TOKENS), *SPLIT,
                     "--batch-size", str(args.batch_size), "--wrapped-prompts", "0", "--no-cost", "--refusal-tokens",
                     tokens)
    pairs = run.result["variants"][0]["eval"]["answers"]
    count, rate = re.search(r"^answers: (\d+) tokens, (\d+) tokens/s$", run.messages, re.MULTILINE).groups()
    return [pair["prompt"] for pair in pairs], [pair["answer"] for pair in pairs], int(count), int(count) / int(rate)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--ways", type=lambda text: text.split(","),
                           default=["transformers", "onnxruntime", *GENAI, "lancet"])
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--batch-size", type=int, default=32)
    args = arguments.parse_args()
    torch.set_num_threads(threads())
    lancet = Lancet(args)
    prompts, texts, _, _ = lancet_eval(lancet, args)  # also says which prompts
    timed = Timed(args, prompts)
    for way in args.ways:
        if way not in ("transformers", "onnxruntime", "lancet", *GENAI):
            arguments.error(f"no such way: {way}")
    best: dict[str, tuple[int, float]] = {}
    same: dict[str, int] = {}
    for turn in range(args.rounds):
        for way in args.ways:
            if way == "lancet":
                _, found, count, seconds = lancet_eval(lancet, args)
            else:
                tokens, seconds = timed.run(way)
                count = sum(map(len, tokens))
                found = [timed.tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens]
            same[way] = sum(a.strip() == b.strip() for a, b in zip(found, texts, strict=True))
            print(f"round {turn + 1}, {way}: {count} tokens in {seconds:.1f} s, {count / seconds:.1f} tokens/s",
                  flush=True)
            if way not in best or count / seconds > best[way][0] / best[way][1]:
                best[way] = (count, seconds)
    print(f"{'way':<14} {'tokens':>6} {'tokens/s':>9} {'to Lancet':>10} {'same answers':>13}")
    rates = {way: count / seconds for way, (count, seconds) in best.items()}
    for way, rate in rates.items():
        ratio = f"{rate / rates['lancet']:.2f}" if "lancet" in rates else "-"
        print(f"{way:<14} {best[way][0]:>6} {rate:>9.1f} {ratio:>10} {same[way]:>10}/{len(texts)}")


if __name__ == "__main__":
    main()
