"""What transformers 5 needs to read the zoo's folders, which transformers 4.57 wrote."""

import json
import pathlib
from typing import Any


def config(source: pathlib.Path) -> dict[str, Any]:
    """config.json with the rotary embedding said as transformers 5 says it.

    It takes a null rope_scaling for the family's default, which is YaRN in gpt-oss; 4.57 takes it for none. The
    genai builder writes gpt-oss with YaRN only, so say none as YaRN with factor 1, which is the same.
    """
    known = json.loads((source / "config.json").read_text())
    if known["model_type"] == "gpt_oss" and known.get("rope_scaling", "") is None:
        del known["rope_scaling"]
        known["rope_parameters"] = {
            "rope_type": "yarn", "rope_theta": known.pop("rope_theta"), "factor": 1.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}
    return known
