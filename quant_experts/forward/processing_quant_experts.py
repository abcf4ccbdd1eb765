"""The processor of a checkpoint, in one file that needs nothing but transformers.

Every checkpoint of a model that takes images carries a byte-for-byte copy, which ``auto_map`` in its
processor_config.json names, so that

    AutoProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)

works where torchvision is not installed. Many families have a *video* processor, which needs it; images do not.
"""

from __future__ import annotations

from typing import Any


def without_video(stock: Any) -> Any:
    """A subclass of the processor class ``stock`` that neither loads nor misses its video part."""
    parts = [part for part in stock.get_attributes() if part != "video_processor"]

    class ImagesAlone(stock):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return list(parts)

        @classmethod
        def register_for_auto_class(cls, auto_class: Any = None) -> None:
            """Nothing: ``save_pretrained`` would look for this file."""

    return _named_as(stock, ImagesAlone)


def _whole(stock: Any) -> Any:
    """A subclass that loads as ``stock``, so that transformers does not mark the stock class as custom code."""

    class Standing(stock):  # type: ignore[misc]
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            return stock.from_pretrained(*args, **kwargs)

        @classmethod
        def register_for_auto_class(cls, auto_class: Any = None) -> None:
            """Nothing: the mark would outlive this load."""

    return _named_as(stock, Standing)


def _named_as(stock: Any, kind: Any) -> Any:
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(kind, attribute, getattr(stock, attribute))
    return kind


def __getattr__(name: str) -> Any:
    """Processor classes of transformers, so that ``auto_map`` can name them in this file."""
    if name.startswith("__"):
        raise AttributeError(name)
    import transformers
    from transformers.utils import is_torchvision_available

    stock = getattr(transformers, name)
    if not (isinstance(stock, type) and issubclass(stock, transformers.ProcessorMixin)):
        return stock
    return _whole(stock) if is_torchvision_available() else without_video(stock)
