"""What a run needs beside the weights, and refuses to begin without: tokenizer, processor, chat template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from quant_experts.planning.errors import Unreadable

TOKENIZERS = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt")
TOKENIZER_ENDS = (".model", ".tiktoken")
IMAGES, WHOLE = "preprocessor_config.json", "processor_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")
SETTINGS = "tokenizer_config.json"
OWN_PROCESSOR = "internvl_chat"
"""The library makes the processor and the template of these repositories itself."""


def missing_companions(
    config: Mapping[str, Any], names: Collection[str], read_json: Callable[[str], Mapping[str, Any]]
) -> tuple[str, ...]:
    """A sentence for each thing that is missing. ``read_json``: the content of a file of the model."""
    return tuple(_missing(config, names, read_json))


def _missing(
    config: Mapping[str, Any], names: Collection[str], read_json: Callable[[str], Mapping[str, Any]]
) -> Iterator[str]:
    def read(name: str) -> Mapping[str, Any]:
        try:
            return read_json(name) if name in names else {}
        except Unreadable:
            return {}  # the run will say what is wrong with it

    if not any(name in TOKENIZERS or name.endswith(TOKENIZER_ENDS) for name in names):
        yield "the model has no tokenizer: copy tokenizer.json and tokenizer_config.json from the one it was made from"
    kind, vision = config.get("model_type"), "vision_config" in config
    if kind == OWN_PROCESSOR or not (vision or kind == "whisper"):
        return
    part = "image_processor" if vision else "feature_extractor"
    if IMAGES not in names and part not in read(WHOLE):
        yield (
            f"the model has no {IMAGES}, and no {part} in {WHOLE}: copy {IMAGES} from the model that it was made from"
        )
    if vision and not any(name in names for name in TEMPLATES) and not _has_template(read(SETTINGS)):
        yield "the model has no chat template; give the instruction-tuned model, or add its chat_template.jinja"


def _has_template(settings: Mapping[str, Any]) -> bool:
    return bool(settings.get("chat_template"))
