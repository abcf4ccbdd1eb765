"""The model's own processor and chat template.

``AutoProcessor`` of many families cannot be built where torchvision is missing, because their *video* processor needs
it (transformers 5.23). Images do not: then the same processor class is built without its video part.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from quant_experts.errors import InvalidModel

LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)


def load_tokenizer(directory: Path) -> Any:
    """Raises InvalidModel when the directory has no usable tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    # The tokenizers library raises bare Exception for a broken tokenizer.json.
    except Exception as error:
        raise InvalidModel(f"{directory.name}: its tokenizer cannot be loaded ({_one_line(error)})") from error


def load_processor(directory: Path, config: Any) -> Any:
    """The processor of a vision-language model: images and text in, model inputs out.

    Raises InvalidModel when the directory has no usable tokenizer or image processor.
    """
    try:
        if importlib.util.find_spec("torchvision") is not None:
            processor = AutoProcessor.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        else:
            processor = _image_only(directory, PROCESSOR_MAPPING[type(config)])
    except LOADING_ERRORS as error:
        raise InvalidModel(f"{directory.name}: its processor cannot be loaded ({_one_line(error)})") from error
    if config.model_type == "llava" and getattr(processor, "patch_size", None) is None:
        for name, value in patches_of(config).items():
            setattr(processor, name, value)
    return processor


def patches_of(config: Any) -> dict[str, Any]:
    """What LLaVA's processor counts image tokens by, from the model's configuration: old repositories have no
    processor_config.json."""
    vision = config.vision_config
    return {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1 if vision.model_type == "clip_vision_model" else 0,  # the class token
    }


def _image_only(directory: Path, kind: type[ProcessorMixin]) -> Any:
    tokenizer = load_tokenizer(directory)
    images = AutoImageProcessor.from_pretrained(
        directory, backend="pil", trust_remote_code=False, local_files_only=True
    )

    # The parts of a processor are the parameters of its __init__; without this one it neither loads nor misses it.
    parts = [part for part in kind.get_attributes() if part != "video_processor"]
    image_only: Any = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: list(parts))})
    options, _ = kind.get_processor_dict(directory, local_files_only=True)
    options = {name: value for name, value in options.items() if name not in kind.get_attributes()}
    options["chat_template"] = _chat_template(directory, tokenizer)
    return image_only.from_args_and_dict([images, tokenizer], options)


def _chat_template(directory: Path, tokenizer: Any) -> str | None:
    """From where the three generations of repositories keep it: a file of its own, JSON, the tokenizer."""
    plain, wrapped = directory / "chat_template.jinja", directory / "chat_template.json"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    if wrapped.is_file():
        return str(json.loads(wrapped.read_text(encoding="utf-8"))["chat_template"])
    template: str | None = tokenizer.chat_template
    return template


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
