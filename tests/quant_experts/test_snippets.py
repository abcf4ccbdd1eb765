"""The snippet of every card runs as it stands, from image or text to a reply, with transformers and nothing of ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from quant_experts.run.quantize import quantize
from quant_experts.spec.specification import QuantizationSpec
from tests.models import SPEECH_FAMILIES, VISION_FAMILIES, make_model
from tests.models_speech import audio_row
from tests.quant_experts.checkpoints import quantized_parts, written
from tests.rows import write_rows

RUN = """
import contextlib, io, json, sys
if sys.argv[1] == "hidden":
    sys.modules["quant_experts"] = None
from transformers.utils import is_torchvision_available
said = {"torchvision": is_torchvision_available()}
for path in sys.argv[2:]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(open(path).read(), {"__name__": "__main__"})
    said[path] = out.getvalue().count("\\n")
print(json.dumps(said))
"""


def snippet_of(checkpoint: Path) -> Path:
    found = re.findall(r"```python\n(.*?)```", (checkpoint / "README.md").read_text(), flags=re.DOTALL)
    assert len(found) == 1
    path = checkpoint.with_suffix(".py")
    path.write_text(found[0].replace("CHECKPOINT", str(checkpoint)).replace("max_new_tokens=64", "max_new_tokens=4"))
    return path


def test_the_snippet_of_every_family_runs_as_it_stands(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (84, 84, 3), dtype=np.uint8)).save(
        tmp_path / "picture.jpg"
    )
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", "NONE"))
        file.writeframes(np.random.default_rng(1).integers(-9000, 9000, 8000, dtype=np.int16).tobytes())
    snippets = []
    for family in (*VISION_FAMILIES, "llama", "qwen3"):
        parts = quantized_parts(family, tmp_path / f"{family}-parts")
        source = parts.arguments["source"]
        if family == "llava":  # as old repositories are
            (source / "processor_config.json").unlink()
        if family == "qwen3":  # a base model
            (source / "chat_template.jinja").unlink()
        snippets.append(snippet_of(written(parts, tmp_path / family)))
    speech = make_model(SPEECH_FAMILIES[0], tmp_path / "speech-source")
    rows = write_rows(tmp_path / "rows.jsonl", [audio_row(i) for i in range(4)])
    quantize(
        model=speech,
        calibration=rows,
        output=tmp_path / "speech",
        spec=QuantizationSpec.preset("rtn", scheme="W8A16", samples=4, group_size=32),
        work=tmp_path / "work",
    )
    snippets.append(snippet_of(tmp_path / "speech"))
    done = subprocess.run(
        [sys.executable, "-c", RUN, "hidden", *map(str, snippets)],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    del said["torchvision"]
    assert all(lines >= 1 for lines in said.values())
    assert len(said) == len(snippets)
