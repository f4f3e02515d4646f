"""Export the zoo with torch.onnx (dynamo) from transformers 4.57 (see README.md for the environment).

  dynamo18        opset 18, eager attention, input_ids and attention_mask to logits
  dynamo23        opset 23, sdpa attention
  dynamo18-bf16   opset 18, bfloat16 weights
  dynamo18-past   opset 18, with a key and value cache
  split           embed_tokens.onnx (input_ids to inputs_embeds) beside a decoder that takes inputs_embeds, opset 18

Every second architecture of a table keeps its weights in external data. The nodes' metadata is dropped: it holds
stack traces with the paths of the machine and is larger than the model.

Run:  python tools/zoo/export_dynamo.py --weights DIR [--only llama,gpt2] [--exporter dynamo18]
"""

import functools
import json
import pathlib
import shutil
import warnings
from typing import Any

import numpy as np
import onnxruntime
import torch
from measure import chosen, deliver, one_line, parser, record, versions, writers
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

TABLE = {
    "dynamo18": ["cohere2", "glm4", "gpt_neox", "granite", "mistral", "olmo", "olmo2", "qwen2", "smollm3",
                 "stablelm", "starcoder2", "lfm2"],
    "dynamo23": ["cohere", "cohere2", "falcon", "gemma3_text", "glm4", "llama_bias", "llama_tied", "nemotron", "opt",
                 "qwen3"],
    "dynamo18-bf16": ["gemma2", "olmo2", "opt"],
    "dynamo18-past": ["gemma", "qwen3"],
    "split": ["gemma3_text", "llama", "llama_tied"],
}
SETTINGS = {
    "dynamo18": (18, torch.float32, "eager"),
    "dynamo23": (23, torch.float32, "sdpa"),
    "dynamo18-bf16": (18, torch.bfloat16, "eager"),
}
EMBEDDING = "embed_tokens.onnx"
# Repositories call the decoder that takes embeddings either name.
DECODER = {"gemma3_text": "model.onnx", "llama": "decoder_model_merged.onnx", "llama_tied": "decoder_model_merged.onnx"}


class LogitsOnly(torch.nn.Module):
    """A causal language model that returns its logits and keeps no cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


class FromEmbeddings(LogitsOnly):
    """The same from the embeddings on."""

    def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False).logits


class WithPast(LogitsOnly):
    """A causal language model with its cache as tensors."""

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        return (out.logits, *(tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)))


def load(source: pathlib.Path, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation=attention).eval()


def sample_ids(model: PreTrainedModel) -> torch.Tensor:
    """Token ids to export with."""
    return torch.randint(3, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))


def save(
    module: torch.nn.Module, inputs: tuple, shapes: dict[str, Any] | list[Any], names: tuple[list[str], list[str]],
    opset: int, path: pathlib.Path, external: bool,
) -> None:
    """Export a module, with the names of its inputs and outputs, to one ONNX file."""
    program = torch.onnx.export(module, inputs, dynamo=True, opset_version=opset, verbose=False, input_names=names[0],
                                output_names=names[1], dynamic_shapes=shapes)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(path), external_data=external)


def batch_and_sequence() -> dict[int, torch.export.Dim]:
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}


def plain(exporter: str, source: pathlib.Path, external: bool, out: pathlib.Path) -> None:
    opset, dtype, attention = SETTINGS[exporter]
    model = load(source, dtype, attention)
    ids, shape = sample_ids(model), batch_and_sequence()
    save(LogitsOnly(model), (ids, torch.ones_like(ids)), {"input_ids": shape, "attention_mask": shape},
         (["input_ids", "attention_mask"], ["logits"]), opset, out / "model.onnx", external)


def with_past(source: pathlib.Path, external: bool, out: pathlib.Path) -> None:
    model = load(source, torch.float32, "eager")
    config, ids, length = model.config, sample_ids(model), 3
    shape = (ids.shape[0], config.num_key_value_heads, length, config.head_dim)
    layers = range(config.num_hidden_layers)
    past = [(torch.ones(shape), torch.ones(shape)) for _ in layers]
    mask = torch.ones(ids.shape[0], length + ids.shape[1], dtype=torch.int64)
    auto = torch.export.Dim.AUTO  # the mask's length is the sum of the other two
    two, cached = {0: auto, 1: auto}, {0: auto, 2: auto}
    caches = [f"past_key_values.{layer}.{kind}" for layer in layers for kind in ("key", "value")]
    presents = [name.replace("past_key_values", "present") for name in caches]
    save(WithPast(model), (ids, mask, past),
         {"input_ids": two, "attention_mask": two, "past": [(cached, cached) for _ in layers]},
         (["input_ids", "attention_mask", *caches], ["logits", *presents]), 18, out / "model.onnx", external)


def split(arch: str, source: pathlib.Path, external: bool, out: pathlib.Path) -> None:
    """The embedding in a file of its own, as repositories for web browsers have it."""
    model = load(source, torch.float32, "eager")
    ids, shape = sample_ids(model), batch_and_sequence()
    embedding = model.get_input_embeddings()
    save(embedding, (ids,), [shape], (["input_ids"], ["inputs_embeds"]), 18, out / EMBEDDING, external)
    save(FromEmbeddings(model), (embedding(ids).detach(), torch.ones_like(ids)),
         {"inputs_embeds": shape, "attention_mask": shape}, (["inputs_embeds", "attention_mask"], ["logits"]), 18,
         out / DECODER[arch], external)


def deliver_split(arch: str, packages: dict[str, str], out: pathlib.Path, source: pathlib.Path, external: bool) -> None:
    """Export, measure and record a model in two files, which `measure.deliver` does not know."""
    target = out / arch / "split"
    entry: dict[str, Any] = {
        "arch": arch, "exporter": "split", "versions": packages, "dtype": "float32", "model": None, "error": None,
        "base_error": None, **writers(json.loads((source / "config.json").read_text()))}
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        split(arch, source, external, target)
        shutil.copyfile(source / "config.json", target / "config.json")
    except Exception as error:
        entry["error"] = one_line(error)
        shutil.rmtree(target)
    else:
        entry["model"] = f"{arch}/split/{DECODER[arch]}"
        entry["embedding_model"] = f"{arch}/split/{EMBEDDING}"
        reference = load_file(out / arch / "reference.safetensors")
        ids = reference["input_ids"]
        embed, decode = (onnxruntime.InferenceSession(str(target / name)) for name in (EMBEDDING, DECODER[arch]))
        embedded = embed.run(None, {"input_ids": ids})[0]
        logits = decode.run(None, {"inputs_embeds": embedded, "attention_mask": np.ones_like(ids)})[0]
        entry["base_error"] = float(np.abs(logits - reference["logits"]).max())
        entry["bytes"] = sum(path.stat().st_size for path in target.iterdir())
    record(out, entry)
    shown = entry["error"] or f"base error {entry['base_error']:.1e}"
    print(f"{'split':18s} {arch:18s} {entry.get('bytes', 0):7d} bytes  {shown}", flush=True)


def main() -> None:
    args = parser(__doc__, TABLE).parse_args()
    warnings.simplefilter("ignore")
    packages = versions("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
    for exporter, arch in chosen(TABLE, args):
        source, external = args.weights / arch, TABLE[exporter].index(arch) % 2 == 1
        if exporter == "split":
            deliver_split(arch, packages, args.out, source, external)
            continue
        if exporter == "dynamo18-past":
            dtype, export = "float32", functools.partial(with_past, source, external)
        else:
            dtype = str(SETTINGS[exporter][1]).removeprefix("torch.")
            export = functools.partial(plain, exporter, source, external)
        deliver(arch, exporter, dtype, packages, args.out, export, args.work / "dynamo")


if __name__ == "__main__":
    main()
