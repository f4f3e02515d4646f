"""Perplexity, multiple choice likelihoods and KL along answers, computed independently of the Rust package.

ONNX Runtime's Python API, the `tokenizers` package, Jinja2 and numpy float64. Every sequence is run alone and whole,
without padding and without a cache, so that batching, cutting and padding in the Rust package are checked too.

Perplexity: the loop of "Perplexity of fixed-length models" (documentation of Hugging Face transformers), averaged over
tokens. Multiple choice: prompts and tokenization of lm-evaluation-harness (tasks mmlu and arc), where the normalised
log-likelihood is taken a byte. KL: sum p (ln(p + 1e-6) - ln(q + 1e-6)), along the base model's greedy answers.

Writes fixtures/scores/expected.json:  python tools/scores_reference.py
"""

import csv
import json
import math
import pathlib

import jinja2
import numpy as np
import onnxruntime as ort
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHAT = ROOT / "fixtures" / "chat"
SCORES = ROOT / "fixtures" / "scores"
MODELS = {"fp32": CHAT / "model.onnx", "q4": ROOT / "fixtures" / "chat-package" / "onnx" / "model_q4.onnx"}
EOS = 2
WINDOWS = [(256, 128, True), (100, 70, False), (64, 64, True), (128, 16, False)]
MULTIPLE_CHOICE = [
    {"file": "mmlu.jsonl", "examples": None, "scoring": "letter", "shots": 0, "chat": False, "bos": True,
     "context": 256},
    {"file": "mmlu.jsonl", "examples": None, "scoring": "letter", "shots": 2, "chat": False, "bos": False,
     "context": 90},
    {"file": "mmlu.jsonl", "examples": "examples.csv", "scoring": "letter", "shots": 1, "chat": True, "bos": True,
     "context": 256},
    {"file": "mmlu.jsonl", "examples": None, "scoring": "text", "shots": 1, "chat": False, "bos": True, "context": 256},
    {"file": "arc.jsonl", "examples": None, "scoring": "text", "shots": 0, "chat": False, "bos": True, "context": None},
    {"file": "arc.jsonl", "examples": "examples.csv", "scoring": "text", "shots": 3, "chat": False, "bos": True,
     "context": 256},
    {"file": "arc.jsonl", "examples": None, "scoring": "text", "shots": 0, "chat": True, "bos": True, "context": 256},
    {"file": "arc.jsonl", "examples": None, "scoring": "letter", "shots": 0, "chat": False, "bos": True,
     "context": 256},
]
KL_POSITIONS = 8
KL_PROMPTS = 12


class Model:
    """One ONNX file, run a sequence at a time."""

    def __init__(self, path):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.cache = {
            i.name: np.zeros([1, i.shape[1], 0, i.shape[3]], np.float32)
            for i in self.session.get_inputs() if i.name.startswith("past_key_values")
        }

    def log_probabilities(self, ids):
        """Natural log-softmax [n, d_vocab] after each of n tokens, float64."""
        n = len(ids)
        feeds = {
            "input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, n), np.int64),
            "position_ids": np.arange(n, dtype=np.int64)[None], **self.cache,
        }
        logits = self.session.run(["logits"], feeds)[0][0].astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def perplexity(model, tokenizer, text, context, stride, bos):
    ids = tokenizer.encode(text, add_special_tokens=bos).ids
    nlls, previous = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        labels = np.array(ids[begin:end])
        masked = np.arange(begin, end) < previous
        of = model.log_probabilities(ids[begin:end])
        scored = [-of[at - 1, labels[at]] for at in range(1, end - begin) if not masked[at]]
        if scored:
            nlls.append(scored)
        previous = end
        if end == len(ids):
            break
    total, count = sum(map(sum, nlls)), sum(map(len, nlls))
    return {
        "context": context, "stride": stride, "bos": bos, "tokens": count, "mean_nll": total / count,
        "perplexity": math.exp(total / count), "bits_per_byte": total / math.log(2) / len(text.encode()),
        "windows": [{"tokens": len(w), "nll": sum(w)} for w in nlls],
    }


def read_items(name):
    path = SCORES / name
    if name.endswith(".csv"):
        with open(path, newline="", encoding="utf-8") as file:
            return [{"q": r[0], "choices": r[1:-1], "answer": "ABCD".index(r[-1]), "subject": None}
                    for r in csv.reader(file)]
    items = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "answerKey" in row:
            question, choices = row["question"], row.get("choices")
            if isinstance(question, dict):
                choices = {key: [c[key] for c in question["choices"]] for key in ("text", "label")}
                question = question["stem"]
            items.append({"q": question, "choices": choices["text"], "subject": None,
                          "answer": choices["label"].index(row["answerKey"])})
        else:
            answer = row["answer"] if isinstance(row["answer"], int) else "ABCD".index(row["answer"])
            items.append({"q": row["question"], "choices": row["choices"], "answer": answer, "subject": row["subject"]})
    return items


def body(item, scoring):
    if scoring == "text":
        return f"Question: {item['q']}\nAnswer:"
    lines = [item["q"]] + [f"{letter}. {text}" for letter, text in zip("ABCDE", item["choices"])]
    return "\n".join(lines + ["Answer:"])


def choice(item, index, scoring):
    return "ABCDE"[index] if scoring == "letter" else item["choices"][index]


def encode_pair(tokenizer, context, continuation, bos):
    spaces = len(context) - len(context.rstrip())
    if spaces > 0:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    whole = tokenizer.encode(context + continuation, add_special_tokens=bos).ids
    alone = tokenizer.encode(context, add_special_tokens=bos).ids
    return alone, whole[len(alone):]


def multiple_choice(model, tokenizer, template, case):
    scoring, shots = case["scoring"], case["shots"]
    items = read_items(case["file"])
    pool = read_items(case["examples"]) if case["examples"] else []
    if shots and not case["examples"]:
        asked, pool, taken = [], [], {}
        for item in items:
            taken[item["subject"]] = taken.get(item["subject"], 0) + 1
            (pool if taken[item["subject"]] <= shots else asked).append(item)
        items = asked
    results, truncated = [], 0
    for item in items:
        fitting = [e for e in pool if e["subject"] == item["subject"]] or pool
        prompt = ""
        if scoring == "letter":
            about = f" about {item['subject'].replace('_', ' ')}" if item["subject"] else ""
            prompt = f"The following are multiple choice questions (with answers){about}.\n\n"
        for example in fitting[:shots]:
            prompt += body(example, scoring) + " " + choice(example, example["answer"], scoring) + "\n\n"
        prompt += body(item, scoring)
        delimiter = " "
        if case["chat"]:
            messages = [{"role": "user", "content": prompt}]
            prompt = template.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
            delimiter = ""
        sums, cut = [], False
        for index in range(len(item["choices"])):
            text = delimiter + choice(item, index, scoring)
            context, continuation = encode_pair(tokenizer, prompt, text, case["bos"] and not case["chat"])
            ids = context + continuation
            if case["context"] and len(ids) > case["context"] + 1:
                ids, cut = ids[-(case["context"] + 1):], True
            of = model.log_probabilities(ids[:-1])
            first = len(ids) - len(continuation)
            sums.append(float(sum(of[at - 1, ids[at]] for at in range(first, len(ids)))))
        truncated += cut
        bytes_of = [len(text.encode()) for text in item["choices"]]
        row = {"answer": item["answer"], "chosen": int(np.argmax(sums)), "log_likelihoods": sums}
        if scoring == "text":
            row["chosen_normalised"] = int(np.argmax(np.array(sums) / np.array(bytes_of)))
        results.append((item["subject"], row))
    right = [row["chosen"] == row["answer"] for _, row in results]
    subjects = {}
    for (subject, _), is_right in zip(results, right):
        if subject:
            subjects.setdefault(subject, []).append(is_right)
    found = {
        **case, "truncated": truncated, "accuracy": sum(right) / len(right),
        "subjects": {s: sum(of) / len(of) for s, of in subjects.items()}, "items": [row for _, row in results],
    }
    if scoring == "text":
        found["accuracy_normalised"] = sum(r["chosen_normalised"] == r["answer"] for _, r in results) / len(results)
    return found


def divergence(base, other, tokenizer, template):
    rows = []
    for name in ("harmless", "pseudo_harmful", "harmful"):
        prompts = json.loads((CHAT / "prompts" / f"{name}_test.json").read_text())
        rows += [p["instruction"] for p in prompts[:KL_PROMPTS // 3]]
    # one answer of few tokens, so that not all positions are reached
    answers, values = [], []
    for at, text in enumerate(rows):
        messages = [{"role": "user", "content": text}]
        rendered = template.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        prompt = tokenizer.encode(rendered, add_special_tokens=False).ids
        answer = []
        while len(answer) < (3 if at == 5 else KL_POSITIONS):
            token = int(base.log_probabilities(prompt + answer)[-1].argmax())
            if token == EOS:
                break
            answer.append(token)
        positions = min(KL_POSITIONS, len(answer) + 1)
        forced = prompt + answer[:positions - 1]
        p = np.exp(base.log_probabilities(forced)[-positions:])
        q = np.exp(other.log_probabilities(forced)[-positions:])
        values.append((p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum(axis=1).tolist())
        answers.append(answer)
    reach = [[v[j] for v in values if len(v) > j] for j in range(KL_POSITIONS)]
    return {
        "positions": KL_POSITIONS, "instructions": rows, "answers": answers, "values": values,
        "means": [float(np.mean(r)) for r in reach], "counts": [len(r) for r in reach],
        "mean": float(np.mean([v for row in values for v in row])),
    }


def main():
    tokenizer = tokenizers.Tokenizer.from_file(str(CHAT / "tokenizer.json"))
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((CHAT / "chat_template.jinja").read_text())
    text = (SCORES / "text.txt").read_text()
    models = {name: Model(path) for name, path in MODELS.items()}
    expected = {"versions": {"onnxruntime": ort.__version__, "tokenizers": tokenizers.__version__}}
    for name, model in models.items():
        windows, cases = (WINDOWS, MULTIPLE_CHOICE) if name == "fp32" else (WINDOWS[:2], MULTIPLE_CHOICE[::2])
        expected[name] = {
            "perplexity": [perplexity(model, tokenizer, text, *w) for w in windows],
            "multiple_choice": [multiple_choice(model, tokenizer, template, case) for case in cases],
        }
    expected["kl"] = divergence(models["fp32"], models["q4"], tokenizer, template)
    # seven decimals are far below the tolerances of tests/scores.rs
    rounded = json.loads(json.dumps(expected), parse_float=lambda number: round(float(number), 7))
    (SCORES / "expected.json").write_text(json.dumps(rounded, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
