"""Make the zoo: small random causal language models of many families, and what the true edit does to each.

For every architecture:
  DIR/<arch>/                          the Hugging Face model folder (config and safetensors weights)
  fixtures/zoo/<arch>/config.json      its config
  fixtures/zoo/<arch>/reference.safetensors
      input_ids       i64 [2, 7]       distinct random rows without special tokens
      direction       f32 [width]      a random unit vector r
      logits          f32 [2, 7, vocabulary]
      logits_ablated  f32 [2, 7, vocabulary], every write to the residual stream made orthogonal to r
      resid_pre       f32 [layers + 1, 2, 7, width], the unedited stream entering every layer and leaving the last

The reference is computed by PyTorch in float64 with forward hooks on the modules that write to the stream (the
table below). Every weight is exactly representable in bfloat16 and in float16, so one reference serves exports
in float32, float16 and bfloat16.

Run from anywhere:  python tools/zoo/models.py --out DIR [--only llama,gpt2]
Needs torch and transformers 4.57 (see README.md).
"""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

ROOT = pathlib.Path(__file__).resolve().parents[2]
BATCH, LENGTH, VOCABULARY = 2, 7, 96
FIRST_TOKEN = 3  # 0, 1, 2 are pad, bos, eos


@dataclasses.dataclass(frozen=True)
class Writers:
    """The modules whose outputs are added to the residual stream, as regular expressions on their names.

    A scale that follows the module (gemma's embedding, granite's residual multiplier) commutes with the
    projection and needs no entry. Where a norm follows it, the norm is the writer.
    """

    embedding: str = r"embed_tokens"
    attention: str = r"self_attn\.o_proj"
    mlp: str = r"mlp\.down_proj"


@dataclasses.dataclass(frozen=True)
class Spec:
    """One architecture: its config, where it writes, and how many embeddings write."""

    config: str
    options: dict[str, Any]
    writers: Writers = Writers()
    embeddings: int = 1


TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {**TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "intermediate_size": 32, "max_position_embeddings": 64, "tie_word_embeddings": False}
# ONNX Runtime's GroupQueryAttention runs only heads of 16, 32, ... on the CPU. Families that the genai builder
# exports and that have no head_dim (or not in transformers 4.43) take width 32, the others heads that are wider
# together than the stream: their attention output projection is not square.
WIDER = {**SMALL, "hidden_size": 32, "intermediate_size": 48}
HEADS = {**SMALL, "head_dim": 16}
MORE_HEADS = {**HEADS, "num_attention_heads": 4, "num_key_value_heads": 2}
# The genai builder rounds the embedding scale sqrt(width): 4 is exact.
GEMMA = {**HEADS, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"}
TOP_2_OF_4 = {"num_local_experts": 4, "num_experts_per_tok": 2}
TOP_2_OF_4_SMALL = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GPT = {**TOKENS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "n_inner": 32}
ALTERNATING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

POST_NORM = Writers(attention=r"post_attention_layernorm", mlp=r"post_feedforward_layernorm")
GPT2_WRITERS = Writers(r"wte|wpe", r"attn\.c_proj", r"mlp\.c_proj")
GPTJ_WRITERS = Writers(r"wte", r"attn\.out_proj", r"mlp\.fc_out")
MOE_BLOCK = Writers(mlp=r"layers\.\d+\.mlp")
SPARSE_MOE = Writers(mlp=r"block_sparse_moe")

SPECS: dict[str, Spec] = {
    "llama": Spec("LlamaConfig", WIDER),
    "llama_tied": Spec("LlamaConfig", {**WIDER, "tie_word_embeddings": True}),
    "llama_bias": Spec("LlamaConfig", {**MORE_HEADS, "attention_bias": True, "mlp_bias": True}),
    "mistral": Spec("MistralConfig", {**MORE_HEADS, "sliding_window": 16}),
    "qwen2": Spec("Qwen2Config", SMALL),
    "qwen3": Spec("Qwen3Config", {**MORE_HEADS, "tie_word_embeddings": True}),
    "smollm3": Spec("SmolLM3Config", {**SMALL, "no_rope_layers": [1, 0], "tie_word_embeddings": True}),
    "olmo": Spec("OlmoConfig", SMALL),
    "olmo2": Spec("Olmo2Config", SMALL, POST_NORM),
    "glm4": Spec("Glm4Config", {**HEADS, "attention_bias": True},
                 Writers(attention=r"post_self_attn_layernorm", mlp=r"post_mlp_layernorm")),
    "gemma": Spec("GemmaConfig", GEMMA),
    "gemma2": Spec("Gemma2Config", {**GEMMA, "attn_logit_softcapping": None, "sliding_window": 16,
                                    "query_pre_attn_scalar": 16}, POST_NORM),
    "gemma3_text": Spec("Gemma3TextConfig", {**GEMMA, **ALTERNATING, "query_pre_attn_scalar": 16}, POST_NORM),
    # The genai builder writes layer_norm_eps 1e-6 whatever the config says.
    "phi": Spec("PhiConfig", {**WIDER, "num_key_value_heads": 2, "partial_rotary_factor": 1.0, "layer_norm_eps": 1e-6},
                Writers(attention=r"self_attn\.dense", mlp=r"mlp\.fc2")),
    # No width may be the vocabulary's (fused gate and up of 2 x 48): the genai builder takes it for the head.
    "phi3": Spec("Phi3Config", {**WIDER, "intermediate_size": 56, "original_max_position_embeddings": 64}),
    "nemotron": Spec("NemotronConfig", {**HEADS, "partial_rotary_factor": 1.0, "norm_eps": 1e-6}),
    "stablelm": Spec("StableLmConfig", {**SMALL, "partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "starcoder2": Spec("Starcoder2Config", {**SMALL, "sliding_window": None, "use_bias": True},
                       Writers(mlp=r"mlp\.c_proj")),
    "cohere": Spec("CohereConfig", {**SMALL, "tie_word_embeddings": True, "logit_scale": 1.0}),
    "cohere2": Spec("Cohere2Config", {**HEADS, **ALTERNATING, "tie_word_embeddings": True, "logit_scale": 1.0}),
    "granite": Spec("GraniteConfig", {**WIDER, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                                      "attention_multiplier": 0.25}),
    "gpt2": Spec("GPT2Config", {**GPT, "n_layer": 3}, GPT2_WRITERS, 2),
    "gpt_bigcode": Spec("GPTBigCodeConfig", {**GPT, "multi_query": True}, GPT2_WRITERS, 2),
    "gptj": Spec("GPTJConfig", {**GPT, "rotary_dim": 4, "tie_word_embeddings": False}, GPTJ_WRITERS),
    "codegen": Spec("CodeGenConfig", {**GPT, "n_head": 4, "rotary_dim": 4, "tie_word_embeddings": False}, GPTJ_WRITERS),
    "gpt_neo": Spec("GPTNeoConfig", {**TOKENS, "hidden_size": 16, "num_layers": 2, "num_heads": 2,
                                     "intermediate_size": 32, "max_position_embeddings": 64, "window_size": 16,
                                     "attention_types": [[["global", "local"], 1]]},
                    Writers(r"wte|wpe", r"attention\.out_proj", r"mlp\.c_proj"), 2),
    "gpt_neox": Spec("GPTNeoXConfig", {**SMALL, "num_hidden_layers": 3, "rotary_pct": 0.5},
                     Writers(r"embed_in", r"attention\.dense", r"mlp\.dense_4h_to_h")),
    "opt": Spec("OPTConfig", {**TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                              "ffn_dim": 32, "max_position_embeddings": 64, "word_embed_proj_dim": 16},
                Writers(r"embed_tokens|embed_positions", r"self_attn\.out_proj", r"fc2"), 2),
    "falcon": Spec("FalconConfig", {**TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                                    "ffn_hidden_size": 32, "parallel_attn": True, "multi_query": True,
                                    "new_decoder_architecture": False, "alibi": False, "bias": True,
                                    "max_position_embeddings": 64},
                   Writers(r"word_embeddings", r"self_attention\.dense", r"mlp\.dense_4h_to_h")),
    "bloom": Spec("BloomConfig", {**TOKENS, "hidden_size": 16, "n_layer": 2, "n_head": 2},
                  Writers(r"word_embeddings_layernorm", r"self_attention\.dense", r"mlp\.dense_4h_to_h")),
    "mpt": Spec("MptConfig", {**TOKENS, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
                Writers(r"wte", r"attn\.out_proj", r"ffn\.down_proj")),
    "deepseek_v3": Spec("DeepseekV3Config", {
        **SMALL, "num_key_value_heads": 2, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
        "rope_scaling": None}, MOE_BLOCK),
    "lfm2": Spec("Lfm2Config", {**SMALL, "num_attention_heads": 1, "block_multiple_of": 8, "conv_L_cache": 3,
                                "layer_types": ["conv", "full_attention"]},
                 Writers(attention=r"self_attn\.out_proj|conv\.out_proj", mlp=r"feed_forward\.w2")),
    "mixtral": Spec("MixtralConfig", {**SMALL, **TOP_2_OF_4, "intermediate_size": 24, "sliding_window": None},
                    SPARSE_MOE),
    "qwen2_moe": Spec("Qwen2MoeConfig", {**SMALL, **TOP_2_OF_4_SMALL, "shared_expert_intermediate_size": 24},
                      MOE_BLOCK),
    "qwen3_moe": Spec("Qwen3MoeConfig", {**HEADS, **TOP_2_OF_4_SMALL}, MOE_BLOCK),
    "phimoe": Spec("PhimoeConfig", {**SMALL, **TOP_2_OF_4, "intermediate_size": 24, "sliding_window": None,
                                    "attention_bias": True, "lm_head_bias": True}, SPARSE_MOE),
    "granitemoe": Spec("GraniteMoeConfig", {**SMALL, **TOP_2_OF_4, "intermediate_size": 24, "residual_multiplier": 0.5,
                                            "embedding_multiplier": 3.0, "attention_multiplier": 0.25}, SPARSE_MOE),
    "gpt_oss": Spec("GptOssConfig", {**HEADS, **TOP_2_OF_4, **ALTERNATING, "intermediate_size": 24,
                                     "rope_scaling": None}, MOE_BLOCK),
}


def rounded(value: torch.Tensor) -> torch.Tensor:
    """The nearest value that bfloat16 and float16 hold exactly."""
    value = value.bfloat16().float()
    return torch.where(value.abs() < 1e-4, 0.0, value)


def build(arch: str) -> PreTrainedModel:
    """The random float32 model of an architecture, always the same."""
    spec = SPECS[arch]
    seed = zlib.crc32(arch.encode())
    torch.manual_seed(seed)
    config = getattr(transformers, spec.config)(**spec.options)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    draw = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=draw)
            if value.dim() < 2 or name.endswith("bias"):
                # Norm weights stay near the 1 or 0 that the family starts them with.
                noise = value + 0.2 * noise
            elif id(value) in embeddings and not tied:
                noise = 0.5 * noise
            else:
                noise = noise / (value.shape[-1] * value.shape[-2]) ** 0.25
            value.copy_(rounded(noise))
        for name, value in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                value.copy_(rounded(0.2 * torch.randn(value.shape, generator=draw)))
    return model


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The layers of the model: the outermost module list of as many modules as the config has layers."""
    config = model.config
    count = next(getattr(config, n) for n in ("num_hidden_layers", "n_layer", "num_layers") if hasattr(config, n))
    lists = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
    return list(next(lists))


def first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def writer_modules(model: PreTrainedModel, spec: Spec) -> list[torch.nn.Module]:
    """The modules that write to the residual stream, each kind as often as it must be there."""
    found = []
    layers = len(decoder_layers(model))
    kinds = ((spec.writers.embedding, spec.embeddings), (spec.writers.attention, layers), (spec.writers.mlp, layers))
    for pattern, count in kinds:
        modules = [m for name, m in model.named_modules() if re.search(rf"(?:^|\.)(?:{pattern})$", name)]
        if len(modules) != count:
            raise RuntimeError(f"{len(modules)} modules match {pattern}, not {count}")
        found += modules
    return found


@contextlib.contextmanager
def ablated(model: PreTrainedModel, spec: Spec, direction: torch.Tensor) -> Iterator[None]:
    """Make every write to the residual stream orthogonal to `direction`."""

    def project(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        write = first(output)
        write = write - (write @ direction)[..., None] * direction
        return (write, *output[1:]) if isinstance(output, tuple) else write

    handles = [module.register_forward_hook(project) for module in writer_modules(model, spec)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and the residual stream entering every layer and leaving the last."""
    layers, stream = decoder_layers(model), []

    def entering(_module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        stream.append((args[0] if args else kwargs["hidden_states"]).clone())

    handles = [layer.register_forward_pre_hook(entering, with_kwargs=True) for layer in layers]
    handles.append(layers[-1].register_forward_hook(lambda _m, _i, output: stream.append(first(output).clone())))
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, torch.stack(stream)


def as_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, with routers that insist on float32 (deepseek_v3) cast back to it."""

    def widen(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        return tuple(o.double() if o.is_floating_point() else o for o in output)

    for module in model.modules():
        if type(module).__name__ == "DeepseekV3TopkRouter":
            module.register_forward_hook(widen)
    return model.double()


@contextlib.contextmanager
def default_float64() -> Iterator[None]:
    """float64 for tensors made without a dtype: mpt's causal mask holds the lowest float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def reference(arch: str, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What the model does unedited and edited, in float64."""
    draw = torch.Generator().manual_seed(zlib.crc32(arch.encode()) + 1)
    rows = [torch.randperm(VOCABULARY - FIRST_TOKEN, generator=draw)[:LENGTH] + FIRST_TOKEN for _ in range(BATCH)]
    ids = torch.stack(rows)
    model = as_float64(model)
    width = model.get_input_embeddings().weight.shape[1]
    direction = torch.randn(width, generator=draw, dtype=torch.float64)
    direction = (direction / direction.norm()).float()
    exact = direction.double() / direction.double().norm()

    with default_float64():
        logits, stream = run(model, ids)
        with ablated(model, SPECS[arch], exact):
            edited, edited_stream = run(model, ids)
    along = (edited_stream @ exact).abs() / edited_stream.norm(dim=-1)
    effect = (logits - edited).abs().max().item()
    print(f"{arch:14s} logits {logits.abs().max().item():5.1f} (std {logits.std().item():.2f}), effect {effect:.2f}, "
          f"along the direction {along.max().item():.1e}", flush=True)
    if along.max() > 1e-12:
        raise RuntimeError("the edited stream is not orthogonal to the direction")
    if effect < 0.05:
        raise RuntimeError("the edit hardly changes the logits")
    return {"input_ids": ids, "direction": direction, "logits": logits.float(), "logits_ablated": edited.float(),
            "resid_pre": stream.float()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target" / "zoo" / "weights")
    parser.add_argument("--fixtures", type=pathlib.Path, default=ROOT / "fixtures" / "zoo")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SPECS),
                        help="architectures, by comma")
    args = parser.parse_args()
    failed = []
    for arch in args.only:
        folder, fixture = args.out / arch, args.fixtures / arch
        try:
            model = build(arch)
            shutil.rmtree(folder, ignore_errors=True)
            model.save_pretrained(folder)
            (folder / "generation_config.json").unlink(missing_ok=True)
            tensors = reference(arch, model)
        except Exception as error:
            failed.append(arch)
            print(f"{arch:14s} failed: {type(error).__name__}: {error}", flush=True)
            continue
        fixture.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "config.json", fixture / "config.json")
        save_file({name: value.contiguous() for name, value in tensors.items()}, fixture / "reference.safetensors")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
