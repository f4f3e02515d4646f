"""Export the zoo with the exporters of 2024 (an environment with torch 2.4 and transformers 4.43, see README.md).

  torchscript             torch.onnx.export, TorchScript, opset 17, logits only
  torchscript-functions   the same with export_modules_as_functions=True: every module a local function, one body
                          for all alike
  dynamo-export24         torch.onnx.dynamo_export, dynamic shapes, local functions, logits only
  dynamo-export24-static  the same with the shape [2, 7] fixed, for what does not export otherwise
  optimum121              optimum 1.21 main_export, text-generation-with-past
  optimum121-merged       the same with legacy=True: decoder_model_merged.onnx with an If

The weights come from a newer transformers, so before every export the logits of the loaded model are compared
with the reference.

Run:  python tools/zoo/export_torch24.py --weights DIR [--only llama,gpt2] [--exporter torchscript]
"""

import contextlib
import functools
import json
import pathlib
import warnings

import torch
from measure import chosen, deliver, parser, versions
from optimum.exporters.onnx import main_export
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TABLE = {
    "torchscript": ["llama", "opt", "bloom", "mixtral", "falcon", "gpt_bigcode", "mpt"],
    "torchscript-functions": ["gpt2", "gpt_neox", "starcoder2", "mixtral"],
    "optimum121-merged": ["llama", "opt", "gpt_bigcode"],
    "dynamo-export24": ["llama", "opt", "gpt2", "gpt_neox"],
    "dynamo-export24-static": ["gpt2", "stablelm", "bloom"],
    "optimum121": ["gptj", "bloom", "gpt_bigcode", "mixtral"],
}


def load(source: pathlib.Path, reference: pathlib.Path) -> PreTrainedModel:
    """The model in float32, checked against the reference logits."""
    known = json.loads((source / "config.json").read_text())
    known.pop("dtype", None)
    config = AutoConfig.for_model(**known)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    state = load_file(source / "model.safetensors")
    missing, unexpected = model.load_state_dict(state, strict=False)
    model.tie_weights()
    if set(missing) - set(model._tied_weights_keys or ()) or unexpected:
        raise RuntimeError(f"weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}")
    wanted = load_file(reference)
    with torch.no_grad():
        error = (model(input_ids=wanted["input_ids"]).logits - wanted["logits"]).abs().max().item()
    if not error < 1e-4:
        raise RuntimeError(f"PyTorch logits are {error:.1e} off the reference")
    return model


def sample(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of the reference's shape and an attention mask, to trace with."""
    ids = torch.randint(3, model.config.vocab_size, (2, 7), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


def torchscript(functions: bool, source: pathlib.Path, reference: pathlib.Path, out: pathlib.Path) -> None:
    model = load(source, reference)
    model.config.use_cache = model.config.return_dict = False
    ids, mask = sample(model)
    axes = {0: "batch", 1: "sequence"}
    torch.onnx.export(
        model, ({"input_ids": ids, "attention_mask": mask},), str(out / "model.onnx"), opset_version=17, dynamo=False,
        input_names=["input_ids", "attention_mask"], output_names=["logits"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": axes},
        export_modules_as_functions=functions)


def dynamo_export(dynamic: bool, source: pathlib.Path, reference: pathlib.Path, out: pathlib.Path) -> None:
    model = load(source, reference)
    model.config.use_cache = False
    options = torch.onnx.ExportOptions(dynamic_shapes=dynamic)
    with contextlib.chdir(out):  # a failure leaves a report in the current folder
        torch.onnx.dynamo_export(model, sample(model)[0], export_options=options).save("model.onnx")


def optimum(legacy: bool, source: pathlib.Path, reference: pathlib.Path, out: pathlib.Path) -> None:
    model = load(source, reference)
    with contextlib.chdir(out):  # the config that is written names the folder it came from
        model.save_pretrained("loaded")
        main_export(
            "loaded", output=".", task="text-generation-with-past", dtype="fp32", device="cpu", legacy=legacy,
            do_validation=False, no_post_process=False, library_name="transformers", framework="pt")
    if legacy:
        for path in out.glob("*.onnx*"):
            if "merged" not in path.name:
                path.unlink()


EXPORT = {
    "torchscript": functools.partial(torchscript, False),
    "torchscript-functions": functools.partial(torchscript, True),
    "dynamo-export24": functools.partial(dynamo_export, True),
    "dynamo-export24-static": functools.partial(dynamo_export, False),
    "optimum121": functools.partial(optimum, False),
    "optimum121-merged": functools.partial(optimum, True),
}


def main() -> None:
    args = parser(__doc__, TABLE).parse_args()
    warnings.simplefilter("ignore")
    packages = versions("torch", "transformers", "optimum", "onnx", "onnxscript", "onnxruntime")
    for exporter, arch in chosen(TABLE, args):
        torch.manual_seed(0)
        deliver(arch, exporter, "float32", packages, args.out,
                lambda work: EXPORT[exporter](args.weights / arch, args.out / arch / "reference.safetensors", work),
                args.work / "torch24", keep=("config.json",))


if __name__ == "__main__":
    main()
