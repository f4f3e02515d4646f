"""Where a step of answers spends its time: ONNX Runtime's profile of the float32 file, by operator.

16 rows of one new token behind 64 positions, default options. The time of each operator is that of its kernels, as ONNX
Runtime's profiler tells it.

Run in the environment of requirements-optimum.txt (tools/real/README.md):
  python tools/bench/step_profile.py [--rows 16] [--past 64]
"""

import argparse
import collections
import json
import pathlib
import sys
import tempfile

import numpy as np
import onnxruntime

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "real"))
from common import REAL  # noqa: E402

STEPS = 20


def feeds(session: onnxruntime.InferenceSession, rows: int, past: int) -> dict[str, np.ndarray]:
    """One token a row behind a cache of zeros; the numbers do not matter."""
    whole = {"input_ids": np.full((rows, 1), 7), "attention_mask": np.ones((rows, past + 1), np.int64),
             "position_ids": np.full((rows, 1), past)}
    return {node.name: whole[node.name].astype(np.int64) if node.name in whole
            else np.zeros((rows, node.shape[1], past, node.shape[3]), np.float32) for node in session.get_inputs()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--past", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/step"
        session = onnxruntime.InferenceSession(REAL / "onnx-community" / "onnx" / "model.onnx", options)
        fed = feeds(session, args.rows, args.past)
        for _ in range(STEPS):
            session.run(None, fed)
        events = json.loads(pathlib.Path(session.end_profiling()).read_text())
    taken = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            taken[event["args"]["op_name"]] += event["dur"]
    total = sum(taken.values())
    print(f"{args.rows} rows behind {args.past} positions: {total / STEPS / 1000:.0f} ms a step in kernels")
    for name, microseconds in taken.most_common(12):
        print(f"{name:<28} {microseconds / STEPS / 1000:7.1f} ms {100 * microseconds / total:5.1f} %")


if __name__ == "__main__":
    main()
