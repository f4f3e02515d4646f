"""What Hugging Face transformers generates and samples, for tests/generation.rs and src/runtime/sample.rs.

Writes fixtures/generation/greedy.json: for each architecture of the zoo (tools/zoo/models.py rebuilds the same
seeded weights) a few prompts of different lengths with
  answer            generate(do_sample=False) of the prompt alone, new tokens only; no token ends it
  log_likelihoods   log p(token t | tokens before) of prompt + answer in float64, from token 1 on
  stop, stopped     a token that ends answers, and what generate(eos_token_id=stop) gives without it, with whether
                    it met it
At every recorded step the best logit leads the second by MARGIN at least (over the spread of logits, rounding in
an export is far below it), and generating all prompts in one left-padded batch gives the same tokens; prompts are
drawn until both hold. Architectures with a learned position table also have an answer that fills the table.

Writes fixtures/generation/sampling.json: logits, settings, and the probabilities that transformers' warpers
(temperature, top-k, top-p, in this order) leave, in float64.

Run from anywhere:  python tools/generation_reference.py [--only llama,gpt2]
Needs torch and transformers 4.57 (tools/zoo/README.md, environment A).
"""

import argparse
import json
import pathlib
import sys
import zlib

import torch
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools" / "zoo"))
import models  # noqa: E402

LENGTHS = (5, 9, 14)
NEW_TOKENS = 12
MARGIN = 0.02
DRAWN = 64
TABLES = ("gpt2", "opt", "gpt_neo", "gpt_bigcode")  # learned positions, 64 of them
NO_STOP = 10_000  # no token of any vocabulary here


@torch.no_grad()
def generate(model, rows, stop=NO_STOP, new_tokens=NEW_TOKENS):
    """(new tokens of each row, smallest margin of each row), the rows in one left-padded batch."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    config = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=stop, pad_token_id=0,
                              output_logits=True, return_dict_in_generate=True)
    found = model.generate(ids, attention_mask=mask, generation_config=config)
    margins = torch.stack([(t := logits.topk(2).values)[:, 0] - t[:, 1] for logits in found.logits], 1)
    return found.sequences[:, width:].tolist(), margins.amin(1).tolist()


@torch.no_grad()
def log_likelihoods(model, ids):
    """log p(ids[t] | ids[:t]) for t from 1."""
    logits = model(torch.tensor([ids])).logits[0].double()
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def cut(tokens, stop):
    """An answer without its stop token and what follows, and whether it met it."""
    return (tokens[:tokens.index(stop)], True) if stop in tokens else (tokens, False)


def draw(generator, length):
    return torch.randint(models.FIRST_TOKEN, models.VOCABULARY, (length,), generator=generator).tolist()


def clear(model, generator, length, new_tokens=NEW_TOKENS):
    """(prompt, greedy answer, margin): of DRAWN prompts the one with most different tokens in a clear answer."""
    drawn = [draw(generator, length) for _ in range(DRAWN)]
    answers, margins = generate(model, drawn, new_tokens=new_tokens)
    found = [(len(set(a)), p) for p, a, m in zip(drawn, answers, margins) if m >= MARGIN]
    if not found:
        raise RuntimeError(f"no prompt of {length} tokens has a clear answer")
    prompt = max(found)[1]
    (answer,), (margin,) = generate(model, [prompt], new_tokens=new_tokens)
    assert margin >= MARGIN / 2 and answer == answers[drawn.index(prompt)]
    return prompt, answer, margin


def greedy(arch):
    model = models.build(arch)
    model.generation_config = GenerationConfig()
    generator = torch.Generator().manual_seed(zlib.crc32(arch.encode()) + 2)
    while True:
        found = [clear(model, generator, length) for length in LENGTHS]
        prompts = [prompt for prompt, _, _ in found]
        together, margins = generate(model, prompts)
        if together == [answer for _, answer, _ in found] and min(margins) >= MARGIN / 2:
            break
    # the stop token is one that the first answer holds late and not early
    stop = max(set(found[0][1]), key=lambda token: found[0][1].index(token))
    rows = []
    for prompt, answer, margin in found:
        (stopped,), _ = generate(model, [prompt], stop=stop)
        stopped, met = cut(stopped, stop)
        assert stopped == cut(answer, stop)[0]
        rows.append({"prompt": prompt, "answer": answer, "margin": round(margin, 4), "stopped": stopped, "met": met})
    entry = {"arch": arch, "stop": stop, "rows": rows}
    if arch in TABLES:
        prompt, answer, _ = clear(model, generator, 60, new_tokens=5)
        entry["full"] = {"prompt": prompt, "answer": answer}
    model = models.as_float64(model)
    with models.default_float64():
        for row in rows:
            row["log_likelihoods"] = [round(v, 7) for v in log_likelihoods(model, row["prompt"] + row["answer"])]
    print(f"{arch:14s} margins {[r['margin'] for r in rows]}, stop {stop} met {[r['met'] for r in rows]}", flush=True)
    return entry


def sampling():
    generator = torch.Generator().manual_seed(5)
    spread = (3 * torch.randn(12, generator=generator, dtype=torch.float64)).float().tolist()
    logits = {
        "spread": spread,
        "ties": [1.0, 2.5, 2.5, 0.0, 2.5, 1.0, -3.0, 1.0],
        "flat": [0.0] * 5,
        "peaked": [60.0, 0.0, -60.0, 59.5],
    }
    settings = [(1.0, 0, 1.0), (0.7, 0, 1.0), (2.5, 0, 1.0), (1.0, 1, 1.0), (1.0, 2, 1.0), (1.0, 3, 1.0), (1.0, 50, 1.0),
                (1.0, 0, 0.9), (1.0, 0, 0.5), (1.0, 0, 0.01), (0.6, 5, 0.95), (0.7, 4, 0.8), (1.5, 3, 0.3)]
    cases = []
    for name, values in logits.items():
        for temperature, top_k, top_p in settings:
            warpers = LogitsProcessorList()
            if temperature != 1.0:
                warpers.append(TemperatureLogitsWarper(temperature))
            if top_k:
                warpers.append(TopKLogitsWarper(top_k))
            if top_p < 1.0:
                warpers.append(TopPLogitsWarper(top_p))
            scores = warpers(torch.zeros(1, 1, dtype=torch.long), torch.tensor([values]).float().double())
            cases.append({"logits": name, "temperature": temperature, "top_k": top_k, "top_p": top_p,
                          "probabilities": scores.softmax(-1)[0].tolist()})
    return {"logits": logits, "cases": cases}


def lines(entries):
    """A JSON list with an entry a line."""
    return "[\n" + ",\n".join(" " + json.dumps(e, separators=(",", ":")) for e in entries) + "\n]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(models.SPECS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = ROOT / "fixtures" / "generation"
    out.mkdir(exist_ok=True)
    table = sampling()
    text = json.dumps(table["logits"])
    (out / "sampling.json").write_text(f'{{"logits":{text},\n"cases":{lines(table["cases"])}}}\n')
    failed, entries = [], []
    for arch in args.only:
        try:
            entries.append(greedy(arch))
        except Exception as error:
            failed.append(arch)
            print(f"{arch:14s} failed: {type(error).__name__}: {error}", flush=True)
    (out / "greedy.json").write_text(lines(entries) + "\n")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
