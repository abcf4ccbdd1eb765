"""A script for a process of its own: load a checkpoint without this package and compare its logits.

    python fresh_process.py CHECKPOINT PROBE DEVICE

The process has torch, transformers and the checkpoint's own loader. It hides the package ``quant_experts``, so that a
loader that needs it fails here and not on the user's machine. PROBE is a safetensors file with the tensors
``inputs.<argument>`` and, optionally, ``logits``: (rows, n, vocabulary), those of the last n positions. Without inputs,
a few token ids are made up. The result is one JSON object on the last line of stdout.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from pathlib import Path
from typing import Any

MADE_UP_TOKENS = 16


def main(checkpoint: Path, probe: Path, device: str) -> dict[str, Any]:
    _die_with_parent()
    sys.modules["quant_experts"] = None  # type: ignore[assignment]  # importing it now raises ImportError
    import torch
    import transformers
    from safetensors.torch import load_file

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    # A checkpoint has its own loader; an export is loaded by the class of transformers.
    model_class = getattr(transformers, next(iter(config.get("auto_map", config["architectures"]))))
    model, loading_info = model_class.from_pretrained(checkpoint, trust_remote_code=True, output_loading_info=True)
    problems = {kind: sorted(map(str, names)) for kind, names in loading_info.items() if names}
    if problems:
        return {"problems": problems}
    model = model.to(device).eval()

    tensors = load_file(str(probe))
    inputs = {name.removeprefix("inputs."): tensor.to(device) for name, tensor in tensors.items() if name != "logits"}
    if not inputs:
        vocabulary = model.get_input_embeddings().weight.shape[0]
        tokens = (torch.arange(MADE_UP_TOKENS, device=device) % vocabulary).unsqueeze(0)
        inputs = {"input_ids": tokens}
        if model.main_input_name == "input_features":  # silence
            shape = (1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
            features = torch.zeros(shape, dtype=model.dtype, device=device)
            inputs = {"input_features": features, "decoder_input_ids": tokens}
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits.float().cpu()
    result: dict[str, Any] = {"finite": bool(torch.isfinite(logits).all())}
    if "logits" in tensors:
        reference = tensors["logits"].float()
        last = logits[:, -reference.shape[1] :]
        result["error"] = float((last - reference).norm() / reference.norm())
        result["agreement"] = float((last.argmax(-1) == reference.argmax(-1)).float().mean())
    return result


def _die_with_parent() -> None:
    """End with the run: a killed run must not leave this process behind."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])) + "\n")
