"""The vLLM plugin for checkpoints of Quant Experts: `vllm serve CHECKPOINT` once this package is installed."""

from __future__ import annotations


def register() -> None:
    """Called by vLLM in each of its processes, through the entry point ``vllm.general_plugins``."""
    from quant_experts_vllm import config  # noqa: F401 -- importing it registers the method
