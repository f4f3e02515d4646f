"""Write fixtures/directions: tiny files as other tools write them, with the writers of those tools.

    python tools/make_direction_files.py      # gguf, numpy, torch, repeng 0.4.0
"""

import pathlib

import gguf
import numpy as np
import torch

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "directions"


def repeng() -> None:
    """A control vector through repeng's own export."""
    np.float_ = np.float64  # repeng 0.4.0 names it, and NumPy 2 does not have it any more
    from repeng import ControlVector

    directions = {3: [0.1, -0.0, 1e30, -3.0], 1: [0.5, -1.0, 0.25, 2.0]}
    directions = {layer: np.array(values, dtype=np.float32) for layer, values in directions.items()}
    ControlVector(model_type="qwen2", directions=directions).export_gguf(OUT / "repeng.gguf")


def number_types() -> None:
    """A control vector of every floating-point type, with an alignment of its own and no hint."""
    values = np.array([1.5, -2, 0.25])
    writer = gguf.GGUFWriter(OUT / "types.gguf", "controlvector")
    writer.add_custom_alignment(8)
    writer.add_tensor("direction.1", values.astype(np.float16))
    upper = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    writer.add_tensor("direction.2", upper.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.add_tensor("direction.30", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def torch_files() -> None:
    """What `torch.save` writes for a vector out of a larger tensor, for a dictionary and for a list."""
    means = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
    torch.save(means[-1, 1], OUT / "view.pt")
    measured = {
        "layers": 2,
        "refuse_0": torch.tensor([0.1, -2.0], dtype=torch.bfloat16),
        "refuse_1": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float16),
    }
    torch.save({"results": measured, "scores": {0: 0.5, 1: None, 2: 2**40}}, OUT / "dictionary.pt")
    weights = torch.nn.Linear(2, 1).state_dict()
    weights["weight"].copy_(torch.tensor([[5.0, 6.0]]))
    del weights["bias"]
    torch.save([torch.nn.Parameter(torch.tensor([7.0])), (weights,)], OUT / "list.pt")


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    repeng()
    number_types()
    torch_files()
