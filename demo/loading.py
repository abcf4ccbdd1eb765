"""Load a model or a checkpoint in a process of its own and let it answer questions about images.

    python -m demo.loading CHECKPOINT ROWS [--without-package]

``--without-package`` hides ``quant_experts`` from the process, so that only the file in the checkpoint and
``trust_remote_code=True`` can load it, as on a machine that has nothing but ``transformers``.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

MARK = "reply: "


@dataclass(frozen=True)
class Reply:
    question: str
    text: str
    tokens: list[int]


def generate_in_fresh_process(checkpoint: Path, rows: Path, *, with_package: bool) -> list[Reply]:
    """A reply to the question of each row. Raises SystemExit with the process's last words."""
    command = [sys.executable, "-m", "demo.loading", str(checkpoint), str(rows)]
    if not with_package:
        command.append("--without-package")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    for line in done.stdout.splitlines():
        if line.startswith(MARK) and done.returncode == 0:
            return [Reply(**reply) for reply in json.loads(line.removeprefix(MARK))]
    raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def answers(checkpoint: Path, rows: Path, *, with_package: bool) -> Iterator[Reply]:
    """Greedy replies of at most 16 new tokens, row by row."""
    if with_package:
        import quant_experts  # noqa: F401 -- registers the quantizer with transformers
    else:
        sys.modules["quant_experts"] = None  # type: ignore[assignment]  # any import of it now fails
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(checkpoint, trust_remote_code=not with_package).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    image_processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")

    for line in rows.read_text(encoding="utf-8").splitlines():
        image_part, text_part = json.loads(line)["messages"][0]["content"]
        picture = Image.open(io.BytesIO(base64.b64decode(image_part["image"].split(",", 1)[1])))
        pixels = image_processor(picture, return_tensors="pt")
        message = {"role": "user", "content": [{"type": "image"}, text_part]}
        prompt = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        patches = int(pixels["image_grid_thw"].prod()) // image_processor.merge_size**2
        inputs = tokenizer(prompt.replace("<|image_pad|>", "<|image_pad|>" * patches), return_tensors="pt")
        mm_token_type_ids = (inputs["input_ids"] == model.config.image_token_id).int()
        with torch.inference_mode():
            tokens = model.generate(
                **inputs, **pixels, mm_token_type_ids=mm_token_type_ids, max_new_tokens=16, do_sample=False
            )
        new = tokens[0, inputs["input_ids"].shape[1] :].tolist()
        yield Reply(text_part["text"], tokenizer.decode(new, skip_special_tokens=True), new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--without-package", action="store_true")
    arguments = parser.parse_args()
    replies = answers(arguments.checkpoint, arguments.rows, with_package=not arguments.without_package)
    print(MARK + json.dumps([asdict(reply) for reply in replies]))


if __name__ == "__main__":
    main()
