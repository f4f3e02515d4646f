"""What `lancet run` published with a gate, against PyTorch: the same logits as the tuned model has with the gated terms of the
direction file, computed in numpy float64 and put in by hooks.

Run in the environment of requirements-optimum.txt:
  python tools/real/gated.py OUT --data DIR [--model onnx/model.onnx] [--prompts 8]
OUT is the folder that `lancet run` wrote from a float32 model; DIR holds the published files `or_bench_hard_test.json`,
`harmful_test.json` and `harmless_test.json`. Fails where logits are further apart than a thousandth of the largest, where no
prompt opens a gate, and where one that does changes nothing.
"""

import argparse
import pathlib

import numpy as np
import onnx
import onnxruntime
import torch
from common import REAL, deterministic, encode, prompts_of
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

FILES = ("or_bench_hard_test.json", "harmful_test.json", "harmless_test.json")
SHAPES = {"identity": lambda y: y, "relu": lambda y: np.maximum(y, 0), "clipped": lambda y: np.clip(y, 0, 1)}
FURTHEST = 1e-3


class Terms:
    """The gated terms of a direction file (docs/edits.md)."""

    def __init__(self, path: pathlib.Path) -> None:
        with safe_open(path, "np") as file:
            self.tensors = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}
            self.told = file.metadata()
        self.layers = {}
        while f"lancet.gate.{len(self.layers)}.layer" in self.told:
            n = len(self.layers)
            self.layers[n] = int(self.told[f"lancet.gate.{n}.layer"])
        if not self.layers:
            raise SystemExit(f"{path} holds no gated term")

    def amount(self, n: int, x: np.ndarray) -> np.ndarray:
        """How much of its vector term `n` adds to each row of `x`, [rows, d_model]."""
        part = lambda name: self.tensors[f"gate.{n}.{name}"]
        product, linear = np.ones(len(x)), iter(part("weights"))
        for at, shape in enumerate(self.told[f"lancet.gate.{n}.shapes"].split(" ")):
            if f"gate.{n}.radial.{at}.centers" in self.tensors:
                y = x @ part(f"radial.{at}.projection").T + part(f"radial.{at}.shift")
                apart = ((y[:, None] - part(f"radial.{at}.centers")) ** 2).sum(-1)
                read = np.exp(-apart) @ part(f"radial.{at}.weights")
            else:
                read = x @ next(linear)
            product *= SHAPES[shape](read + part("offsets")[at])
        return product

    def hook(self, n: int, amounts: list):
        def change(module, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            x = hidden[0].double().numpy()
            amounts.append(self.amount(n, x))
            x = x + amounts[-1][:, None] * self.tensors[f"gate.{n}.vector"]
            changed = torch.tensor(x, dtype=hidden.dtype)[None]
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

        return change


def feeds(session: onnxruntime.InferenceSession, ids: list[int]) -> dict[str, np.ndarray]:
    known = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64),
             "position_ids": np.arange(len(ids))[None]}
    empty = lambda shape: [1 if at == 0 else 0 if isinstance(size, str) else size for at, size in enumerate(shape)]
    return {one.name: known[one.name] if one.name in known else np.zeros(empty(one.shape), np.float32)
            for one in session.get_inputs()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--model", default="onnx/model.onnx")
    parser.add_argument("--prompts", type=int, default=8)
    args = parser.parse_args()
    deterministic(0)
    onnx.checker.check_model(args.out / args.model, full_check=True)
    terms = Terms(args.out / "lancet.direction.safetensors")
    model = AutoModelForCausalLM.from_pretrained(REAL / "tuned", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(REAL / "tuned")
    session = onnxruntime.InferenceSession(args.out / args.model, providers=["CPUExecutionProvider"])
    furthest, opened = 0.0, 0
    print("| set | prompts | opened | logits apart, of the largest | changed by the term |")
    print("|---|--:|--:|--:|--:|")
    for name in FILES:
        apart, changed, here = 0.0, [], 0
        prompts = prompts_of(args.data / name)[: args.prompts]
        for ids in encode(tokenizer, prompts):
            logits = lambda ids=ids: model(torch.tensor([ids])).logits[0].double().numpy()
            amounts: list = []
            with torch.inference_mode():
                plain = logits()
                hooks = [model.model.layers[layer].register_forward_pre_hook(terms.hook(n, amounts), with_kwargs=True)
                         for n, layer in terms.layers.items()]
                wanted = logits()
                [one.remove() for one in hooks]
            found = session.run(["logits"], feeds(session, ids))[0][0]
            scale = np.abs(wanted).max()
            apart = max(apart, np.abs(found - wanted).max() / scale)
            if any(np.any(amount > 0) for amount in amounts):
                here += 1
                changed.append(np.abs(found - plain).max() / scale)
        print(f"| {name} | {len(prompts)} | {here} | {apart:.1e} | {min(changed, default=0):.2f} or more |")
        furthest, opened = max(furthest, apart), opened + here
        if changed and min(changed) < FURTHEST:
            raise SystemExit("a prompt opens a gate, and the file computes what the base does")
    if furthest > FURTHEST or not opened:
        raise SystemExit(f"logits are {furthest:.1e} apart, and {opened} prompts opened a gate")


if __name__ == "__main__":
    main()
