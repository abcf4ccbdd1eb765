"""A small vision-language model that has learned to read: handwritten digits on coloured boards.

``boards`` draws images, questions and answers; ``model`` makes the untrained Qwen2-VL; ``train`` trains it;
``repository`` is the trained result; ``reading`` measures how well a model reads; ``outliers`` gives it the activation
outliers of large models without changing what it computes.
"""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).parent / "repository"
"""The trained model as a hub repository has it; ``metrics.json`` says how it was made."""
