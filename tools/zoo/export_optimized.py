"""Optimise float32 optimum exports of the zoo (see README.md for the environment).

  ort-optimizer          onnxruntime.transformers.optimizer.optimize_model, opt_level 0
  ort-offline            what an ONNX Runtime session saves with basic optimisations
  ort-offline-extended   with extended optimisations
  onnxslim               onnxslim.slim

Every architecture is exported anew with optimum, without keeping that file.

Run:  python tools/zoo/export_optimized.py --weights DIR [--only llama,gpt2] [--exporter onnxslim]
"""

import functools
import pathlib
import shutil
import tempfile
import warnings

import onnx
import onnxruntime
import onnxslim
from export_optimum import TASKS, export
from measure import chosen, deliver, parser, versions
from onnxruntime.transformers.fusion_options import FusionOptions
from onnxruntime.transformers.optimizer import optimize_model
from transformers import AutoConfig

TABLE = {
    "ort-optimizer": ["gpt2", "gpt_neo", "gptj", "mistral", "olmo2", "phi", "stablelm"],
    "ort-offline": ["codegen", "cohere", "falcon", "mpt", "olmo2", "smollm3"],
    "ort-offline-extended": ["gemma2", "qwen3"],
    "onnxslim": ["bloom", "codegen", "gptj", "mpt", "nemotron", "olmo", "qwen2", "stablelm"],
}
# The optimizer has a class of its own for few families; the others are treated as gpt2.
MODEL_TYPE = {"phi": "phi"}
LEVEL = {
    "ort-offline": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "ort-offline-extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def optimize(arch: str, exporter: str, source: pathlib.Path, out: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export(TASKS["optimum"], source, pathlib.Path(folder))
        plain, result = str(pathlib.Path(folder) / "model.onnx"), str(out / "model.onnx")
        shutil.copyfile(pathlib.Path(folder) / "config.json", out / "config.json")
        if exporter == "onnxslim":
            onnx.save(onnxslim.slim(plain), result)
        elif exporter == "ort-optimizer":
            config = AutoConfig.from_pretrained(source)
            model_type = MODEL_TYPE.get(arch, "gpt2")
            fusions = FusionOptions(model_type)
            fusions.enable_rotary_embeddings = False  # it stores the cosines of 131072 positions
            made = optimize_model(plain, model_type=model_type, num_heads=config.num_attention_heads,
                                  hidden_size=config.hidden_size, optimization_options=fusions, opt_level=0,
                                  use_gpu=False)
            made.save_model_to_file(result)
        else:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = LEVEL[exporter]
            options.optimized_model_filepath = result
            onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])


def main() -> None:
    args = parser(__doc__, TABLE).parse_args()
    warnings.simplefilter("ignore")
    packages = versions("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "onnxslim")
    for exporter, arch in chosen(TABLE, args):
        deliver(arch, exporter, "float32", packages, args.out,
                functools.partial(optimize, arch, exporter, args.weights / arch), args.work / "optimized",
                keep=("config.json",))


if __name__ == "__main__":
    main()
