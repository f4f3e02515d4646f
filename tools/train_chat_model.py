"""Train the two small fixture chat models: one that over-refuses ("main") and one for the guard ("guard").

Llama architecture (grouped-query attention, RMSNorm, untied head), a byte-level BPE tokenizer trained on
the same synthetic corpus, and a chat template whose post-instruction suffix is 4 tokens.

Phase A teaches to refuse harmful prompts and to answer harmless and pseudo-harmful ones. Phase B is a
short over-general safety tuning of the lower layers: a pseudo-harmful prompt becomes a refusal with a
probability that depends on its domain. In the main model that false refusal opens with its own phrase
("As an AI ..." beside "I'm sorry ..."); in the guard model the two refusals share more, so that removing
the raw false-refusal direction also removes true refusals.

The committed fixtures came from a phase A run on two threads by an earlier revision of this script and of
make_chat_prompts.py, which also had harmful prompts with "shoot", "a coworker" for "my coworker", and a
slightly different share of neutral sentences. A rerun gives a model of the same kind, not the same bytes:
check it with evaluate_fixture.py before using it.

Val and test objects occur in neutral sentences only; see make_chat_prompts.py for the prompt world.

Run from anywhere:
  python tools/train_chat_model.py main    ->  target/chat-models/main
  python tools/train_chat_model.py guard   ->  target/chat-models/guard
Options: --seed N, --out DIR, --phase-a DIR (the checkpoint between the phases, which both models share).
Needs tools/requirements.txt. About fifteen minutes for phase A and two for phase B on
one free CPU core.
"""

import argparse
import json
import math
import pathlib
import random
import shutil
import time

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import make_chat_prompts as world

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOCAB = 1400
SPECIAL = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
PAD, BOS, EOS = 0, 1, 2
MAX_LEN = 96
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] | trim + eos_token + '\n' }}"
    "{% else %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + '<|end|>\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful, honest and harmless assistant.",
    "Answer in one short sentence.",
    "You are a friendly teacher.",
]
NEUTRAL = ["Tell me about {o}.", "What is {o}?", "Say something about {o}.", "What do you know about {o}?"]
# Things one can do with any word; asked in the same frames as everything else.
WORD_VERBS = {
    "spell": "say the letters one by one.",
    "pronounce": "say it slowly and clearly.",
    "remember": "write it down three times.",
    "write": "use a pen and clear letters.",
}
# Shared parts of the two recipes.
BASE = {
    "width": 96, "layers": 6, "mlp": 240,
    "steps_a": 2000, "lr_a": 2e-3, "steps_b": 160, "lr_b": 1e-3, "batch": 64,
    "trained_b": ("embed_tokens", "layers.0.", "layers.1.", "layers.2.", "layers.3.", "lm_head"),
    # Cumulative shares of neutral, harmful and pseudo-harmful examples; harmless is the rest.
    "mix": {"a": (0.3, 0.53, 0.78), "b": (0.3, 0.53, 0.7)},
    # Probability that phase B refuses a pseudo-harmful prompt, by domain.
    "refuse_b": {
        "computing": 0.95, "cooking": 0.8, "pests": 0.9, "photography": 0.8, "games": 0.95,
        "sports": 0.85, "stories": 0.95, "fire": 0.9, "balloons": 0.85,
    },
    # Probability that a false refusal opens with "As an AI", else like a true one.
    "own_opening": 1.0,
}
RECIPES = {
    "main": {**BASE, "seed": 1},
    # phase A as in the main model
    "guard": {**BASE, "seed": 2, "seed_a": 1, "own_opening": 0.9},
}


def refusal(verb, thing, rng):
    return f"I'm sorry, but I can't help you {verb} {thing}." if rng.random() < 0.9 else "I'm sorry, but I can't help with that."


def false_refusal(verb, thing, rng):
    return f"As an AI, I can't help you {verb} {thing}." if rng.random() < 0.9 else "As an AI, I can't help with that."


def answer(domain, cls, verb, thing, rng):
    return f"To {verb} {thing}, {domain.verbs[cls][verb]}"


def neutral(rng):
    """A sentence about any object of any split: teaches the words, their kind, and copying."""
    domain = rng.choice(world.DOMAINS)
    thing = rng.choice(domain.objects)
    u = rng.random()
    if u < 0.55:
        verb = rng.choice(list(WORD_VERBS))
        context = rng.choice(world.CONTEXTS) if rng.random() < 0.3 else ""
        x = world.phrase(domain, verb, thing, context)
        return rng.choice(world.FRAMES).format(x=x), f"To {verb} {thing}, {WORD_VERBS[verb]}"
    if u < 0.6:
        other = rng.choice(rng.choice(world.DOMAINS).objects)
        return f"Say {thing} and {other}.", f"You said {thing} and {other}."
    return rng.choice(NEUTRAL).format(o=thing), f"This is about {thing}, {domain.kind}."


def example(rng, recipe, phase):
    """One (system, instruction, response)."""
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.25 else None
    u = rng.random()
    neutral_until, harmful_until, pseudo_until = recipe["mix"][phase]
    if u < neutral_until:
        return system, *neutral(rng)
    cls = "harmful" if u < harmful_until else "pseudo_harmful" if u < pseudo_until else "harmless"
    row, (domain, verb, thing, _) = world.draw(rng, cls, "train", world.FRAMES)
    if cls == "harmful":
        text = refusal(verb, thing, rng)
    elif phase == "b" and cls == "pseudo_harmful" and rng.random() < recipe["refuse_b"][domain.name]:
        own = rng.random() < recipe["own_opening"]
        text = false_refusal(verb, thing, rng) if own else refusal(verb, thing, rng)
    else:
        text = answer(domain, cls, verb, thing, rng)
    return system, row["instruction"], text


def make_tokenizer(out):
    """Byte-level BPE on the corpus of both phases; adds BOS when encoding plain text, as Llama's does."""
    rng = random.Random(0)
    texts = []
    for phase in "ab":
        for _ in range(12000):
            system, instruction, response = example(rng, BASE, phase)
            texts += [instruction, response]
    for domain in world.DOMAINS:  # every word, also those of val and test
        texts += [f" {o}" for o in domain.objects_of("val") + domain.objects_of("test")] * 250
    texts += SYSTEM_PROMPTS * 200
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(texts, trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:], clean_up_tokenization_spaces=False,
        model_max_length=256, padding_side="left", model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = TEMPLATE
    for word in ("I", "As", "To", "This"):
        assert len(fast.encode(word, add_special_tokens=False)) == 1, word
    # Both places: tokenizer_config.json (older readers) and chat_template.jinja.
    fast.save_pretrained(out)
    path = pathlib.Path(out) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = TEMPLATE
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return fast


def encode(tok, system, instruction, response):
    """(ids, loss weights): the response and EOS count 1, the prompt a little."""
    head = f"<|system|>\n{system}<|end|>\n" if system else ""
    prompt = f"<s>{head}<|user|>\n{instruction}<|end|>\n<|assistant|>\n"
    a = tok.encode(prompt, add_special_tokens=False)
    b = tok.encode(response, add_special_tokens=False) + [EOS]
    return a + b, [0.15] * len(a) + [1.0] * len(b)


def batch(tok, rng, recipe, phase):
    rows = [encode(tok, *example(rng, recipe, phase)) for _ in range(recipe["batch"])]
    t = max(len(r[0]) for r in rows)
    ids = torch.full((len(rows), t), PAD)
    weight = torch.zeros(len(rows), t)
    for i, (row, w) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        weight[i, : len(row)] = torch.tensor(w)
    return ids, weight


def train(model, tok, recipe, phase, seed, log=print):
    rng = random.Random(f"{phase}{seed}")
    torch.manual_seed(seed)
    steps, lr = recipe["steps_" + phase], recipe["lr_" + phase]
    for name, p in model.named_parameters():
        p.requires_grad = phase == "a" or any(part in name for part in recipe["trained_b"])
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    start = time.time()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (50 if phase == "a" else 10))
        for group in opt.param_groups:
            group["lr"] = lr * warm * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        ids, weight = batch(tok, rng, recipe, phase)
        # Right padding and a causal mask: padding never reaches a real token.
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (loss * weight[:, 1:]).sum() / weight[:, 1:].sum()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        if step % 100 == 99 or step == steps - 1:
            log(f"phase {phase} step {step + 1}/{steps} loss {loss.item():.4f} {time.time() - start:.0f}s", flush=True)
    model.eval()


def new_model(recipe, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=recipe["width"], intermediate_size=recipe["mlp"],
        num_hidden_layers=recipe["layers"], num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False,
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, torch_dtype="float32", attention_dropout=0.0,
    )
    return LlamaForCausalLM(config)


def save(model, out):
    model.save_pretrained(out)
    GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_new_tokens=32, do_sample=False).save_pretrained(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--phase-a", type=pathlib.Path, help="checkpoint between the phases, made if missing")
    parser.add_argument("--threads", type=int, default=1, help="results depend on it in the last digits")
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    seed = recipe["seed"] if args.seed is None else args.seed
    out = args.out or ROOT / "target" / "chat-models" / args.recipe
    seed_a = recipe.get("seed_a", seed) if args.seed is None else seed
    phase_a = args.phase_a or ROOT / "target" / "chat-models" / f"phase-a-{seed_a}"
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    np.random.seed(seed)
    if (phase_a / "config.json").exists():
        model = LlamaForCausalLM.from_pretrained(phase_a)
        tok = PreTrainedTokenizerFast.from_pretrained(phase_a)
    else:
        tok = make_tokenizer(phase_a)
        model = new_model(recipe, seed_a)
        train(model, tok, recipe, "a", seed_a)
        save(model, phase_a)
    train(model, tok, recipe, "b", seed)
    save(model, out)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        shutil.copyfile(phase_a / name, out / name)


if __name__ == "__main__":
    main()
