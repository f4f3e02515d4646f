"""Export the trained fixture chat models to ONNX with optimum-onnx.

  fixtures/chat        the main model, float32, with its tokenizer and configs
  fixtures/chat-guard  the guard model, float32
  fixtures/chat-fp16   the main model in float16
  fixtures/chat-bf16   the main model in bfloat16

float32 and float16 by `optimum.exporters.onnx.main_export` (task text-generation-with-past), one file each.
optimum-onnx 0.1.0 fails on dtype="bf16" here ("ScalarType ComplexDouble is an unexpected tensor scalar
type"), so the bfloat16 file is the float16 graph with every float16 type made bfloat16 and each weight
rounded once from float32. Checked: logits against PyTorch (float32 within 1e-4), and whether ONNX Runtime's
CPU provider runs the file (it need not run bfloat16).

Run from anywhere, after train_chat_model.py:  python tools/export_chat_models.py
Options: --main DIR, --guard DIR (default target/chat-models/{main,guard}).
"""

import argparse
import pathlib
import shutil
import tempfile

import numpy as np
import onnx
import onnxruntime
import torch
from optimum.exporters.onnx import main_export
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
KEEP = (
    "model.onnx", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja",
)
PROMPTS = ("How do I kill a Python process?", "Tell me about weeds.", "How can I rob a bank tonight?")


def export(source, target, dtype):
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        main_export(
            str(source), output=work, task="text-generation-with-past", dtype=dtype, device="cpu",
            do_validation=False, no_post_process=False, library_name="transformers",
        )
        for name in KEEP:
            # Tokenizer and configs as trained; only the dtype in config.json is the exporter's.
            own = pathlib.Path(source) / name
            made = pathlib.Path(work) / name
            path = made if name in ("model.onnx", "config.json") or not own.exists() else own
            if path.exists():
                shutil.copyfile(path, target / name)
        left = [p.name for p in pathlib.Path(work).iterdir() if "onnx" in p.name and p.name != "model.onnx"]
        assert not left, f"more than one ONNX file: {left}"


def to_bfloat16(f32_path, f16_path, out):
    """The float16 graph with float16 made bfloat16; weights rounded to nearest even from the float32 file."""
    f32, model = onnx.load(str(f32_path)), onnx.load(str(f16_path))
    f16_type, bf16_type = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    exact = {i.name: i for i in f32.graph.initializer}
    nodes = {n.name: n for n in f32.graph.node}
    # Anonymous weights ("onnx::MatMul_123") are numbered differently: match them by node and input.
    twin = {}
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            other = nodes.get(node.name)
            if other is not None and at < len(other.input) and other.input[at] in exact:
                twin[name] = exact[other.input[at]]

    def convert(tensor, source=None):
        if tensor.data_type != f16_type:
            return
        value = onnx.numpy_helper.to_array(source if source is not None else tensor).astype(np.float32)
        assert list(value.shape) == list(tensor.dims), tensor.name
        bits = value.view(np.uint32).astype(np.uint64)
        raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        tensor.ClearField("int32_data")
        tensor.data_type, tensor.raw_data = bf16_type, raw

    missing = []
    for tensor in model.graph.initializer:
        if tensor.data_type == f16_type and tensor.name not in twin:
            missing.append(tensor.name)
        convert(tensor, twin.get(tensor.name))
    assert not missing, missing
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                convert(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == f16_type:
                attribute.i = bf16_type
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == f16_type:
            value.type.tensor_type.elem_type = bf16_type
    onnx.checker.check_model(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(out))


def check(source, target, limit):
    """Largest logit difference between ONNX Runtime on the CPU and float32 PyTorch."""
    model = LlamaForCausalLM.from_pretrained(source, torch_dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    proto = onnx.load(str(target / "model.onnx"))
    size = (target / "model.onnx").stat().st_size
    print(f"{target.relative_to(ROOT)}: {size} bytes, opset {[(o.domain, o.version) for o in proto.opset_import]}, "
          f"ir {proto.ir_version}, inputs {[i.name for i in proto.graph.input][:4]} ...")
    try:
        session = onnxruntime.InferenceSession(str(target / "model.onnx"), providers=["CPUExecutionProvider"])
        worst = 0.0
        for prompt in PROMPTS:
            ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
            feed = {
                "input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64),
                "position_ids": np.arange(len(ids))[None],
            }
            for i in session.get_inputs():
                if i.name.startswith("past_key_values"):
                    kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[i.type]
                    feed[i.name] = np.zeros((1, i.shape[1], 0, i.shape[3]), kind)
            feed = {i.name: feed[i.name] for i in session.get_inputs()}
            got = session.run(["logits"], feed)[0].astype(np.float32)
            want = model(torch.tensor([ids])).logits.detach().numpy()
            worst = max(worst, float(np.abs(got - want).max()))
        print(f"  largest logit difference to float32 PyTorch: {worst:.2e}")
        assert worst < limit, (worst, limit)
    except Exception as error:
        if "bf16" not in target.name:
            raise
        print(f"  ONNX Runtime's CPU provider does not run it: {str(error)[:300]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--main", type=pathlib.Path, default=ROOT / "target" / "chat-models" / "main")
    parser.add_argument("--guard", type=pathlib.Path, default=ROOT / "target" / "chat-models" / "guard")
    args = parser.parse_args()
    jobs = [(args.main, "chat", "fp32"), (args.main, "chat-fp16", "fp16"), (args.main, "chat-bf16", "bf16"),
            (args.guard, "chat-guard", "fp32")]
    for source, name, dtype in jobs:
        if not (source / "config.json").exists():
            print(f"skipped {name}: no checkpoint in {source}")
            continue
        if dtype == "bf16":
            made = FIXTURES / "chat-fp16"
            to_bfloat16(FIXTURES / "chat" / "model.onnx", made / "model.onnx", FIXTURES / name / "model.onnx")
            for file in KEEP[1:]:
                text = (made / file).read_text()
                (FIXTURES / name / file).write_text(text.replace('"float16"', '"bfloat16"') if file == "config.json" else text)
        else:
            export(source, FIXTURES / name, dtype)
        check(source, FIXTURES / name, {"fp32": 1e-4, "fp16": 0.2, "bf16": 1.0}[dtype])


if __name__ == "__main__":
    main()
