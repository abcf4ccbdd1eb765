"""The model's own processor and chat template.

Without torchvision, ``AutoProcessor`` cannot build many families' processors, because their *video* part needs it
(transformers 5.23). Images do not. In that case the same processor class is built without its video part.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from quant_experts.errors import InvalidModel, one_line
from quant_experts.forward.processing_quant_experts import without_video

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)


def load_tokenizer(directory: Path) -> Any:
    """Raises InvalidModel when the directory has no usable tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    # The tokenizers library raises bare Exception for a broken tokenizer.json.
    except Exception as error:
        raise InvalidModel(f"{directory.name}: its tokenizer cannot be loaded ({one_line(error)})") from error


def has_processor(directory: Path) -> bool:
    """A model of images without one is calibrated on rows of text alone; the report warns that no row has an image."""
    return any((directory / name).is_file() for name in PROCESSORS)


def load_processor(directory: Path, config: Any) -> Any:
    """The processor of a vision-language model: images and text in, model inputs out.

    Raises InvalidModel when the directory has no usable tokenizer or image processor.
    """
    try:
        if importlib.util.find_spec("torchvision") is not None:
            processor = AutoProcessor.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        else:
            kind = without_video(PROCESSOR_MAPPING[type(config)])
            processor = kind.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except LOADING_ERRORS as error:
        raise InvalidModel(f"{directory.name}: its processor cannot be loaded ({one_line(error)})") from error
    if not hasattr(processor, "image_processor"):
        raise InvalidModel(
            f"{directory.name}: transformers has no processor of images for {config.model_type} in it, but a "
            f"{type(processor).__name__}"
        )
    if getattr(processor, "patch_size", "") is None:
        for name, value in patches_of(config).items():
            setattr(processor, name, value)
    return processor


def patches_of(config: Any) -> dict[str, Any]:
    """What LLaVA's processor counts image tokens with, from the model's configuration; empty for other models.

    Old repositories have no processor_config.json.
    """
    if config.model_type != "llava":
        return {}
    vision = config.vision_config
    return {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1 if vision.model_type == "clip_vision_model" else 0,  # the class token
    }


def why_no_videos(processor: Any) -> str | None:
    """Why the processor takes no videos; None where it takes them."""
    if getattr(processor, "video_processor", None) is not None:
        return None
    kinds = [each for each in type(processor).__mro__ if hasattr(each, "get_attributes")]
    if any("video_processor" in kind.get_attributes() for kind in kinds):
        return f"the video processor of {type(processor).__name__} needs torchvision, which is not installed"
    return f"{type(processor).__name__} takes none"
