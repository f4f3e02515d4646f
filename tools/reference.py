"""An independent float64 implementation of the method, run on a fixture chat model.

It follows Wang, Hu, Röttger, Plank, "Surgical, Cheap, and Flexible: Mitigating False Refusal in Language
Models via Single Vector Ablation", ICLR 2025 (arXiv 2410.03415), and shares no code with the Rust
package: the Llama forward pass below is written out by hand, reads its weights from the initializers of
the fixture's ONNX graph, renders the chat template with transformers, and ablates by hooks (the
embedding, and each attention and MLP output). Prompts are
grouped by length, so nothing is ever padded. The whole train and val splits are used, in file order.

Writes, for the Rust tests to compare with:
  reference.json         scores, filter, and every candidate for lambda 1, 0.5 and 0
  reference.safetensors  mean activations, directions and a few logits
                         (mean.* and direction.* are float64 [positions, layers, width])

Run from anywhere:  python tools/reference.py            (fixtures/chat)
                    python tools/reference.py MODEL_DIR  (another fixture; prompts of fixtures/chat)
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHAT = ROOT / "fixtures" / "chat"
CLASSES = ("harmful", "pseudo_harmful", "harmless")
LAMBDAS = (1.0, 0.5, 0.0)
REFUSAL_OPENINGS = ("I'm sorry", "As an AI")
MAX_LAYER_FRACTION = 0.8
MAX_KL = 0.2
MAX_ADDITION_KL = 2.0
# A raw norm this small beside the mean harmless activation is rounding noise (layer 0: the suffix
# embeddings are the same for every prompt).
DEGENERATE = 1e-4


class Llama:
    """A plain Llama forward pass. `weights` has Hugging Face names and [out, in] matrices."""

    def __init__(self, config, weights, dtype=torch.float64):
        self.layers = config["num_hidden_layers"]
        self.width = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.head_dim = config.get("head_dim") or self.width // self.heads
        self.eps = config["rms_norm_eps"]
        self.theta = config.get("rope_theta", 10000.0)
        self.w = {name: torch.as_tensor(np.asarray(value)).to(dtype) for name, value in weights.items()}
        self.dtype = dtype

    def norm(self, x, weight):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight

    def rotate(self, x):
        """Rotary embedding of x [batch, heads, time, head_dim], halves rotated."""
        half = self.head_dim // 2
        inv = self.theta ** (-torch.arange(half, dtype=self.dtype) / half)
        angle = torch.arange(x.shape[2], dtype=self.dtype)[:, None] * inv[None]
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def attention(self, x, prefix):
        b, t, _ = x.shape
        q = (x @ self.w[prefix + "q_proj.weight"].T).view(b, t, self.heads, self.head_dim).transpose(1, 2)
        k = (x @ self.w[prefix + "k_proj.weight"].T).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        v = (x @ self.w[prefix + "v_proj.weight"].T).view(b, t, self.kv_heads, self.head_dim).transpose(1, 2)
        repeat = self.heads // self.kv_heads
        q, k = self.rotate(q), self.rotate(k).repeat_interleave(repeat, 1)
        v = v.repeat_interleave(repeat, 1)
        score = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        score = score.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), float("-inf"))
        out = (score.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1)
        return out @ self.w[prefix + "o_proj.weight"].T

    def mlp(self, x, prefix):
        gate = torch.nn.functional.silu(x @ self.w[prefix + "gate_proj.weight"].T)
        return (gate * (x @ self.w[prefix + "up_proj.weight"].T)) @ self.w[prefix + "down_proj.weight"].T

    @torch.no_grad()
    def __call__(self, tokens, direction=None, share=1.0, added=None):
        """Logits [batch, time, vocab] and resid_pre [layers, batch, time, width] of tokens [batch, time].

        Ablates the share of `direction`; `added` is (layer, vector): added to resid_pre there, after the ablation."""
        if direction is None:
            ablate = lambda x: x
        else:
            r = torch.as_tensor(direction).to(self.dtype)
            ablate = lambda x: x - share * (x @ r)[..., None] * r  # eq. 4
        x = ablate(self.w["model.embed_tokens.weight"][tokens])
        resid = []
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            if added is not None and added[0] == layer:
                x = x + added[1].to(self.dtype)  # eq. 5
            resid.append(x)
            h = self.norm(x, self.w[prefix + "input_layernorm.weight"])
            x = x + ablate(self.attention(h, prefix + "self_attn."))
            h = self.norm(x, self.w[prefix + "post_attention_layernorm.weight"])
            x = x + ablate(self.mlp(h, prefix + "mlp."))
        logits = self.norm(x, self.w["model.norm.weight"]) @ self.w["lm_head.weight"].T
        return logits, torch.stack(resid)


def read_onnx_weights(path):
    """Hugging Face names to float64 matrices [out, in], from the graph's nodes and initializers."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    initializers = {i.name: i for i in graph.initializer}

    def array(name):
        return numpy_helper.to_array(initializers[name]).astype(np.float64)

    weights = {name: array(name) for name in initializers if name.startswith("model.") and name.endswith(".weight")}
    for node in graph.node:
        # "/model/layers.0/self_attn/q_proj/MatMul" with an initializer [in, out] as second input
        if node.op_type == "MatMul" and node.input[1] in initializers:
            name = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".") + ".weight"
            weights[name] = array(node.input[1]).T
    return weights


def load_fixture(folder, dtype=torch.float64):
    """(Llama, tokenizer) of a fixture folder."""
    from transformers import PreTrainedTokenizerFast

    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return Llama(config, read_onnx_weights(folder / "model.onnx"), dtype), tokenizer


def read_prompts(cls, split, folder=CHAT / "prompts"):
    return [row["instruction"] for row in json.loads((folder / f"{cls}_{split}.json").read_text())]


def render(tokenizer, instruction, system=None):
    """Token ids of the rendered chat template up to the first response position (one BOS)."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": instruction})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)


def suffix_length(tokenizer):
    """Longest common token suffix of the template over different instructions."""
    rows = [render(tokenizer, text) for text in ("How are you?", "Tell me about weeds.", "Hello", "1 + 1 =")]
    k = 0
    while len({row[-1 - k] for row in rows}) == 1:
        k += 1
    return k


def refusal_token_ids(tokenizer):
    return sorted({tokenizer.encode(text, add_special_tokens=False)[0] for text in REFUSAL_OPENINGS})


def by_length(rows):
    """Yield (indices, token tensor) for groups of equal length."""
    groups = {}
    for index, row in enumerate(rows):
        groups.setdefault(len(row), []).append(index)
    for indices in groups.values():
        yield indices, torch.tensor([rows[i] for i in indices])


def run(model, rows, k, direction=None, resid=True, added=None):
    """Last logits [n, V] and resid_pre at the last k positions [n, k, L, D]."""
    logits, acts = [None] * len(rows), [None] * len(rows)
    for indices, tokens in by_length(rows):
        out, stream = model(tokens, direction, added=added)
        for j, i in enumerate(indices):
            logits[i] = out[j, -1]
            if resid:
                acts[i] = stream[:, j, -k:].transpose(0, 1)
    return torch.stack(logits), torch.stack(acts) if resid else None


def refusal_score(logits, refusal_ids):
    """Eq. 3, float64: ln(P + 1e-8) - ln(1 - P + 1e-8)."""
    p = logits.double().softmax(-1)[..., refusal_ids].sum(-1)
    return torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)


def kl_divergence(base, other):
    """The published KL(base || other), with 1e-6 inside the logarithms, float64."""
    p, q = base.double().softmax(-1), other.double().softmax(-1)
    return (p * (torch.log(p + 1e-6) - torch.log(q + 1e-6))).sum(-1)


def raw_directions(means, lam):
    """Eq. 1, 2, 6, 7 before the normalisation, [k, L, D]."""
    r = means["harmful"] - means["harmless"]
    w = means["pseudo_harmful"] - means["harmless"]
    return w - lam * ((w * r).sum(-1) / ((r * r).sum(-1) + 1e-8))[..., None] * r


def collect(model, train_rows, k, refusal_ids):
    """Steps 2 to 4: train scores, kept indices and mean activations of the kept prompts."""
    scores, kept, means = {}, {}, {}
    for cls in CLASSES:
        logits, acts = run(model, train_rows[cls], k)
        scores[cls] = refusal_score(logits, refusal_ids)
        keep = scores[cls] < 0 if cls == "harmless" else scores[cls] > 0
        kept[cls] = keep.nonzero().flatten().tolist()
        means[cls] = acts[kept[cls]].double().mean(0)
    return scores, kept, means


def select(model, val_rows, means, lam, refusal_ids, base_harmless):
    """Steps 6 and 7. Returns (directions [k, L, D] of unit norm, candidates, selected)."""
    raw = raw_directions(means, lam)
    norms = raw.norm(dim=-1)
    unit = raw / norms[..., None]
    k, layers, _ = raw.shape
    reference_norm = means["harmless"].norm(dim=-1)
    candidates = []
    for i in range(k):
        for layer in range(layers):
            direction = unit[i, layer]
            logits = {c: run(model, val_rows[c], k, direction, resid=False)[0] for c in CLASSES}
            rs = refusal_score(logits["pseudo_harmful"], refusal_ids).mean().item()
            harmful = refusal_score(logits["harmful"], refusal_ids).mean().item()
            kl = kl_divergence(base_harmless, logits["harmless"]).mean().item()
            if not all(map(math.isfinite, (rs, harmful, kl))):
                discarded = "nan"
                rs, harmful, kl = (v if math.isfinite(v) else None for v in (rs, harmful, kl))
            elif norms[i, layer] < DEGENERATE * reference_norm[i, layer]:
                discarded = "degenerate"
            elif layer >= math.floor(MAX_LAYER_FRACTION * layers):
                discarded = "late_layer"
            elif kl > MAX_KL:
                discarded = "kl"
            else:
                discarded = None
            candidates.append(
                {
                    "position": i - k,
                    "layer": layer,
                    "raw_norm": norms[i, layer].item(),
                    "refusal_score": rs,
                    "harmful_refusal_score": harmful,
                    "kl": kl,
                    "discarded": discarded,
                }
            )
    left = [c for c in candidates if c["discarded"] is None]
    best = min(left, key=lambda c: (c["refusal_score"], c["layer"], c["position"])) if left else None
    return unit, candidates, best


def layer_projections(means, unit, position, lam):
    """Means of the classes on unit r and w' of every layer and on the selected direction, and cos(r, w)."""
    r = means["harmful"] - means["harmless"]
    w = means["pseudo_harmful"] - means["harmless"]
    ablated = raw_directions(means, lam)
    rows = []
    for layer in range(r.shape[1]):
        at = [means[c][position, layer] for c in CLASSES]
        least = 1e-10 * at[2].norm()

        def along(v):
            return [(m @ v / v.norm()).item() if v.norm() > least else 0.0 for m in at]

        a, b = r[position, layer], w[position, layer]
        both = a.norm() > least and b.norm() > least
        rows.append({
            "layer": layer,
            "cosine": (a @ b / (a.norm() * b.norm())).item() if both else None,
            "on_true": along(a),
            "on_false": along(ablated[position, layer]),
            "on_selected": [(m @ unit).item() for m in at],
        })
    return rows


def additions(model, rows, means, refusal_ids, base):
    """Eq. 5 with factor 1 on harmless val: every r[i, l] added to resid_pre[l]; highest score, KL at most 2, ties lower."""
    r = means["harmful"] - means["harmless"]
    k, layers, _ = r.shape
    candidates = []
    for i in range(k):
        for layer in range(1, math.floor(MAX_LAYER_FRACTION * layers)):
            logits = run(model, rows, k, resid=False, added=(layer, r[i, layer]))[0]
            candidates.append({
                "position": i - k,
                "layer": layer,
                "refusal_score": refusal_score(logits, refusal_ids).mean().item(),
                "kl": kl_divergence(base, logits).mean().item(),
            })
    left = [c for c in candidates if c["kl"] <= MAX_ADDITION_KL]
    best = max(left, key=lambda c: (c["refusal_score"], -c["layer"], -c["position"])) if left else None
    return candidates, best


def prepare(model, tokenizer):
    """What every lambda shares: rows, suffix length, refusal tokens, means and baselines."""
    k = suffix_length(tokenizer)
    ids = refusal_token_ids(tokenizer)
    train = {c: [render(tokenizer, p) for p in read_prompts(c, "train")] for c in CLASSES}
    val = {c: [render(tokenizer, p) for p in read_prompts(c, "val")] for c in CLASSES}
    scores, kept, means = collect(model, train, k, ids)
    base = {c: run(model, val[c], k, resid=False)[0] for c in CLASSES}
    return {"k": k, "ids": ids, "val": val, "scores": scores, "kept": kept, "means": means, "base": base}


def main():
    from safetensors.torch import save_file

    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else CHAT
    torch.set_num_threads(1)
    model, tokenizer = load_fixture(folder)
    s = prepare(model, tokenizer)
    k, ids = s["k"], s["ids"]
    report = {
        "dtype": "float64",
        "positions": [i - k for i in range(k)],
        "layers": model.layers,
        "d_model": model.width,
        "suffix_token_ids": render(tokenizer, "Hello")[-k:],
        "refusal_token_ids": ids,
        "kept": {c: len(s["kept"][c]) for c in CLASSES},
        "baseline": {c: refusal_score(s["base"][c], ids).mean().item() for c in CLASSES},
        "train_scores": {c: s["scores"][c].tolist() for c in CLASSES},
        "lambdas": {},
    }
    tensors = {f"mean.{c}": s["means"][c].contiguous() for c in CLASSES}
    for lam in LAMBDAS:
        unit, candidates, best = select(model, s["val"], s["means"], lam, ids, s["base"]["harmless"])
        name = f"{lam:g}"
        report["lambdas"][name] = {
            "selected": {"position": best["position"], "layer": best["layer"]},
            "layers": layer_projections(s["means"], unit[best["position"] + k, best["layer"]], best["position"] + k, lam),
            "candidates": candidates,
        }
        tensors[f"direction.lambda_{name}"] = unit.contiguous()
        print(f"lambda {name}: position {best['position']} layer {best['layer']} "
              f"pseudo {best['refusal_score']:.3f} harmful {best['harmful_refusal_score']:.3f} kl {best['kl']:.5f}")
    candidates, best = additions(model, s["val"]["harmless"], s["means"], ids, s["base"]["harmless"])
    report["addition"] = {"selected": best, "candidates": candidates}
    print("addition:", best)
    # One prompt at a time: base and ablated logits of the first test pseudo-harmful prompts, lambda 1.
    chosen = report["lambdas"]["1"]["selected"]
    direction = tensors["direction.lambda_1"][chosen["position"] + k, chosen["layer"]]
    rows = [torch.tensor([render(tokenizer, p)]) for p in read_prompts("pseudo_harmful", "test")[:4]]
    tensors["logits.base"] = torch.stack([model(r)[0][0, -1] for r in rows]).float()
    # half of the component, and the chosen vector added: rounded to float32 as a direction file holds them
    r = (s["means"]["harmful"] - s["means"]["harmless"])[best["position"] + k, best["layer"]].float().double()
    tensors["logits.share_half"] = torch.stack([model(x, direction, 0.5)[0][0, -1] for x in rows]).float()
    tensors["logits.half_and_added"] = torch.stack(
        [model(x, direction, 0.5, (best["layer"], r))[0][0, -1] for x in rows]).float()
    tensors["logits.ablated"] = torch.stack([model(r, direction)[0][0, -1] for r in rows]).float()
    # JSON has no NaN: a candidate whose raw norm is exactly zero has null scores and "nan".
    (folder / "reference.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    save_file(tensors, str(folder / "reference.safetensors"))
    print("kept", report["kept"], "baseline", report["baseline"])


if __name__ == "__main__":
    main()
