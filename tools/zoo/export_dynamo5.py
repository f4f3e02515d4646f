"""Export the zoo with torch.onnx (dynamo) from transformers 5 (see README.md for the environment).

  dynamo18-tf5   opset 18
  dynamo23-tf5   opset 23

Mostly mixtures of experts, which transformers 4.57 does not export this way. The experts run as batched MatMuls
(experts_implementation="batched_mm"): the default calls an operator without an ONNX form, "eager" branches on data.
Before every export the logits of the loaded model are compared with the reference. The nodes' metadata is
dropped: it holds stack traces with the paths of the machine and is larger than the model.

Run:  python tools/zoo/export_dynamo5.py --weights DIR [--only mixtral] [--exporter dynamo18-tf5]
"""

import functools
import pathlib
import warnings

import torch
import transformers5
from measure import chosen, deliver, parser, versions
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TABLE = {
    "dynamo18-tf5": ["mixtral", "gpt_oss", "qwen2_moe", "granitemoe", "phimoe", "deepseek_v3", "gpt2"],
    "dynamo23-tf5": ["gpt_oss", "qwen2_moe"],
}
OPSET = {"dynamo18-tf5": 18, "dynamo23-tf5": 23}


class LogitsOnly(torch.nn.Module):
    """A causal language model that returns its logits and keeps no cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def load(source: pathlib.Path, reference: pathlib.Path) -> PreTrainedModel:
    """The model in float32, checked against the reference logits."""
    config = AutoConfig.for_model(**transformers5.config(source))
    kind = {"config": config, "dtype": torch.float32, "attn_implementation": "eager"}
    try:
        model = AutoModelForCausalLM.from_pretrained(source, experts_implementation="batched_mm", **kind)
    except (TypeError, ValueError):  # not a mixture of experts
        model = AutoModelForCausalLM.from_pretrained(source, **kind)
    wanted = load_file(reference)
    with torch.no_grad():
        error = (model.eval()(input_ids=wanted["input_ids"]).logits - wanted["logits"]).abs().max().item()
    if not error < 1e-4:
        raise RuntimeError(f"PyTorch logits are {error:.1e} off the reference")
    return model


def export(source: pathlib.Path, reference: pathlib.Path, out: pathlib.Path, opset: int) -> None:
    model = load(source, reference)
    ids = torch.randint(3, model.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        LogitsOnly(model), (ids, torch.ones_like(ids)), dynamo=True, opset_version=opset, verbose=False,
        input_names=["input_ids", "attention_mask"], output_names=["logits"],
        dynamic_shapes={"input_ids": shape, "attention_mask": shape})
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(str(out / "model.onnx"), external_data=True)


def main() -> None:
    args = parser(__doc__, TABLE).parse_args()
    warnings.simplefilter("ignore")
    packages = versions("torch", "transformers", "onnxscript", "onnx-ir", "onnxruntime")
    for exporter, arch in chosen(TABLE, args):
        deliver(arch, exporter, "float32", packages, args.out,
                functools.partial(export, args.weights / arch, args.out / arch / "reference.safetensors",
                                  opset=OPSET[exporter]),
                args.work / "dynamo5")


if __name__ == "__main__":
    main()
