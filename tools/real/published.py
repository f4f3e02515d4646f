"""The published procedure in PyTorch: what Lancet is compared with (Wang et al. 2025, arXiv 2410.03415).

As it is commonly run: a float32 model in transformers, forward hooks, left-padded batches of 32, one candidate and one
prompt set at a time.

  collect   refusal scores of the train prompts (eq. 3), the filter, and the mean of what enters each block at the
            post-instruction positions, summed in float64
  select    candidates (eq. 1, 2, 6, 7) for each lambda; each is ablated before every block and after every attention
            and MLP (eq. 4), and scored on the validation prompts; the lowest mean refusal score on pseudo-harmful
            prompts wins, of those below 0.8 of the layers whose harmless KL is at most 0.2

The prompts, the refusal tokens and the number of positions are those of a file that `lancet collect` wrote, so both
see the same texts; they are put through the chat template here. Writes OUT.json (kept prompts, scores of each
candidate, choices, seconds of each stage) and OUT.npz (means and chosen directions), after each lambda anew.

Run in the environment of requirements-optimum.txt:
  python tools/real/published.py target/real/tuned --activations ACTS -o OUT
On two idle cores collect takes 90 seconds for 384 prompts, and select 12 seconds a candidate: 35 minutes for each
lambda with 180 candidates. `--only collect` stops after the means, `--candidates N` scores N of them, evenly spread,
and chooses none.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from common import CLASSES, batches, encode, left_padded, threads
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 32
KL_THRESHOLD, LAYER_SHARE = 0.2, 0.8
# A difference of means shorter than this share of the mean itself is rounding noise.
NOISE = 1e-9


@dataclass
class Task:
    """What `lancet collect` was asked: tokens of the prompts by class and split, and how they are scored."""

    rows: dict[str, dict[str, list[list[int]]]]
    refusal_tokens: list[int]
    positions: int

    @classmethod
    def read(cls, path: pathlib.Path, tokenizer) -> "Task":
        with safe_open(path, "np") as file:
            info = json.loads(file.metadata()["lancet.activations"])
        if info["system"] is not None:
            raise SystemExit(f"{path} was collected under a system prompt; that is not supported here")
        rows = {name: {split: encode(tokenizer, info["prompts"][name][split]) for split in ("train", "val")}
                for name in CLASSES}
        return cls(rows, info["refusal_tokens"], len(info["suffix"]))


@contextmanager
def hooked(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Model:
    """A Llama-like model and what is read from it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.blocks = self.model.model.layers
        self.pad = self.model.generation_config.pad_token_id

    def batches(self, rows: Sequence[list[int]]) -> Iterator[dict[str, torch.Tensor]]:
        for part in batches(rows, BATCH):
            ids, mask = left_padded(part, self.pad)
            yield {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}

    @torch.inference_mode()
    def probabilities(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Of the first response token, in float64 [prompts, vocabulary]."""
        return torch.cat([self.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].double().softmax(-1)
                          for batch in self.batches(rows)])

    @torch.inference_mode()
    def means(self, rows: Sequence[list[int]], positions: int) -> np.ndarray:
        """Mean of what enters each block, float64 [positions, layers, width]."""
        total = torch.zeros(positions, len(self.blocks), self.model.config.hidden_size, dtype=torch.float64)

        def add_to(layer: int) -> Callable:
            def hook(_module, args: tuple) -> None:
                total[:, layer] += args[0][:, -positions:].double().sum(0)

            return hook

        with hooked([block.register_forward_pre_hook(add_to(at)) for at, block in enumerate(self.blocks)]):
            for batch in self.batches(rows):
                self.model(**batch, logits_to_keep=1, use_cache=False)
        return (total / len(rows)).numpy()

    def ablated(self, direction: np.ndarray) -> contextmanager:
        """The model whose residual stream never holds the direction: x - r (r . x) at every write."""
        unit = torch.tensor(direction, dtype=torch.float32)

        def project(x: torch.Tensor) -> torch.Tensor:
            return x - (x @ unit).unsqueeze(-1) * unit

        def before(_module, args: tuple) -> tuple:
            return project(args[0]), *args[1:]

        def after(_module, _args, output):
            return (project(output[0]), *output[1:]) if isinstance(output, tuple) else project(output)

        handles = [block.register_forward_pre_hook(before) for block in self.blocks]
        handles += [part.register_forward_hook(after) for block in self.blocks for part in (block.self_attn, block.mlp)]
        return hooked(handles)


def refusal_scores(probabilities: torch.Tensor, tokens: Sequence[int]) -> np.ndarray:
    """Eq. 3, one a prompt."""
    refusal = probabilities[:, tokens].sum(-1).numpy()
    return np.log(refusal + 1e-8) - np.log(1 - refusal + 1e-8)


def divergence(base: torch.Tensor, other: torch.Tensor) -> float:
    """Mean KL(base || other) over the prompts."""
    return float((base * ((base + 1e-6).log() - (other + 1e-6).log())).sum(-1).mean())


def collect(model: Model, task: Task) -> tuple[dict, dict[str, np.ndarray]]:
    """(kept prompts and scores by class, means by class)."""
    start = time.perf_counter()
    scores = {name: refusal_scores(model.probabilities(task.rows[name]["train"]), task.refusal_tokens)
              for name in CLASSES}
    filtered = time.perf_counter()
    kept = {name: np.flatnonzero(scores[name] < 0 if name == "harmless" else scores[name] > 0) for name in CLASSES}
    empty = [name for name in CLASSES if not kept[name].size]
    if empty:
        raise SystemExit(f"the filter leaves no prompt of {', '.join(empty)}: the model does not refuse as it should")
    means = {name: model.means([task.rows[name]["train"][at] for at in kept[name]], task.positions) for name in CLASSES}
    found = {"kept": {name: kept[name].tolist() for name in CLASSES},
             "train_scores": {name: scores[name].tolist() for name in CLASSES},
             "seconds": {"filter": filtered - start, "means": time.perf_counter() - filtered}}
    return found, means


def candidate(means: dict[str, np.ndarray], position: int, layer: int, strength: float) -> np.ndarray | None:
    """The unit direction w' of a place (eq. 1, 2, 6, 7); none where the means are equal but for rounding."""
    harmful, pseudo, harmless = (means[name][position, layer] for name in CLASSES)
    true, false = harmful - harmless, pseudo - harmless
    raw = false - strength * (false @ true) / (true @ true + 1e-8) * true
    length = np.linalg.norm(raw)
    return raw / length if length > NOISE * np.linalg.norm(harmless) else None


def select(model: Model, task: Task, means: dict, strength: float, base: torch.Tensor, limit: int | None) -> dict:
    """Scores of the candidates for one lambda (`strength`), and the chosen one; `base` is of the unchanged model."""
    val = {name: task.rows[name]["val"] for name in CLASSES}
    layers = len(model.blocks)
    places = [(position, layer) for position in range(-task.positions, 0) for layer in range(layers)]
    places = [place for place in places if candidate(means, *place, strength) is not None]
    if limit is not None:
        places = [places[at] for at in np.linspace(0, len(places) - 1, min(limit, len(places))).round().astype(int)]
    start, measured = time.perf_counter(), []
    for position, layer in places:
        with model.ablated(candidate(means, position, layer, strength)):
            pseudo = refusal_scores(model.probabilities(val["pseudo_harmful"]), task.refusal_tokens)
            harmful = refusal_scores(model.probabilities(val["harmful"]), task.refusal_tokens)
            kl = divergence(base, model.probabilities(val["harmless"]))
        measured.append({"position": position, "layer": layer, "refusal_score": float(pseudo.mean()),
                         "harmful_refusal_score": float(harmful.mean()), "kl": kl})
        seconds = time.perf_counter() - start
        print(f"lambda {strength:g}: {len(measured)}/{len(places)}, {seconds / len(measured):.1f} s each", flush=True)
    found = {"candidates": measured, "seconds": {"candidates": seconds, "each": seconds / len(measured)}}
    allowed = [c for c in measured if c["layer"] < int(LAYER_SHARE * layers) and c["kl"] <= KL_THRESHOLD]
    if limit is None and allowed:
        best = min(allowed, key=lambda c: (c["refusal_score"], c["layer"], c["position"]))
        found["selected"] = {"position": best["position"], "layer": best["layer"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="folder in Hugging Face's format")
    parser.add_argument("--activations", type=pathlib.Path, required=True, help="what `lancet collect` wrote")
    parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="OUT: gets OUT.json and OUT.npz")
    parser.add_argument("--lambda", dest="strengths", type=lambda text: [float(x) for x in text.split(",")],
                        default=[1.0, 0.5, 0.0], help="comma-separated (default 1,0.5,0)")
    parser.add_argument("--only", choices=["collect"])
    parser.add_argument("--candidates", type=int, metavar="N", help="score so many, to see how long it takes")
    args = parser.parse_args()
    torch.set_num_threads(threads())
    model = Model(args.model)
    task = Task.read(args.activations, AutoTokenizer.from_pretrained(args.model))
    found, means = collect(model, task)
    print(f"kept {', '.join(f'{len(at)} {name}' for name, at in found['kept'].items())}; filter "
          f"{found['seconds']['filter']:.1f} s, means {found['seconds']['means']:.1f} s", flush=True)
    arrays = {f"mean.{name}": mean for name, mean in means.items()}
    found["lambda"] = {}
    if args.only != "collect":
        base = model.probabilities(task.rows["harmless"]["val"])
        for strength in args.strengths:
            result = select(model, task, means, strength, base, args.candidates)
            found["lambda"][f"{strength:g}"] = result
            if "selected" in result:
                chosen = result["selected"]
                arrays[f"direction.{strength:g}"] = candidate(means, chosen["position"], chosen["layer"], strength)
                print(f"lambda {strength:g}: position {chosen['position']}, layer {chosen['layer']}", flush=True)
            write(args.output, found, arrays)
    write(args.output, found, arrays)


def write(output: pathlib.Path, found: dict, arrays: dict[str, np.ndarray]) -> None:
    """What there is so far: a run takes long, and may be stopped between two lambdas."""
    output.with_name(f"{output.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    np.savez(output.with_name(f"{output.name}.npz"), **arrays)


if __name__ == "__main__":
    main()
