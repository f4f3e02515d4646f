"""Export the zoo with optimum-onnx (see README.md for the environment).

  optimum             main_export, text-generation-with-past, float32
  optimum-tied        the same with accelerate installed: then optimum stores tied weights once, otherwise twice
  optimum-nocache     main_export, text-generation, float32
  optimum-fp16        the first, converted with onnxruntime.transformers.float16, inputs and outputs too
  optimum-fp16-io32   the same with keep_io_types: inputs and outputs stay float32

Run:  python tools/zoo/export_optimum.py --weights DIR [--only llama,gpt2] [--exporter optimum]
"""

import functools
import importlib.util
import pathlib
import shutil
import tempfile
import warnings

import onnx
from measure import chosen, deliver, parser, versions
from onnxruntime.transformers.float16 import convert_float_to_float16
from optimum.exporters.onnx import main_export

TASKS = {"optimum": "text-generation-with-past", "optimum-tied": "text-generation-with-past",
         "optimum-nocache": "text-generation"}
KEEP_IO_TYPES = {"optimum-fp16": False, "optimum-fp16-io32": True}
TABLE = {
    "optimum": ["bloom", "falcon", "gemma2", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_oss", "llama", "mixtral", "opt",
                "qwen2_moe"],
    "optimum-tied": ["gemma", "mpt"],
    "optimum-nocache": ["cohere", "gpt_bigcode", "opt"],
    "optimum-fp16": ["gemma2", "gpt2"],
    "optimum-fp16-io32": ["olmo2", "opt"],
}


def export(task: str, source: pathlib.Path, out: pathlib.Path) -> None:
    main_export(str(source), output=str(out), task=task, dtype="fp32", device="cpu", do_validation=False,
                no_post_process=False, library_name="transformers")


def convert(keep_io_types: bool, source: pathlib.Path, out: pathlib.Path) -> None:
    """Export in float32 and convert that to float16."""
    with tempfile.TemporaryDirectory() as folder:
        plain = pathlib.Path(folder)
        export(TASKS["optimum"], source, plain)
        model = convert_float_to_float16(onnx.load(str(plain / "model.onnx")), keep_io_types=keep_io_types)
        onnx.save(model, str(out / "model.onnx"))
        shutil.copyfile(plain / "config.json", out / "config.json")


def main() -> None:
    args = parser(__doc__, TABLE).parse_args()
    warnings.simplefilter("ignore")
    accelerate = importlib.util.find_spec("accelerate") is not None
    packages = versions("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime",
                        *(["accelerate"] if accelerate else []))
    for exporter, arch in chosen(TABLE, args):
        if accelerate != (exporter == "optimum-tied"):
            print(f"{exporter:18s} {arch:18s} left out: accelerate is {'' if accelerate else 'not '}installed")
            continue
        if exporter in TASKS:
            dtype, make = "float32", functools.partial(export, TASKS[exporter], args.weights / arch)
        else:
            dtype, make = "float16", functools.partial(convert, KEEP_IO_TYPES[exporter], args.weights / arch)
        deliver(arch, exporter, dtype, packages, args.out, make, args.work / "optimum", keep=("config.json",))


if __name__ == "__main__":
    main()
