"""The quality report of a run as data: what was lost, where, and what it cost in bits.

The numbers are measured on held-out rows that were never used to fit. Errors are relative squared errors of a group's
output, ``||Y - Y'||² / ||Y||²``, of the quantized layers fed with the input that the quantized prefix gives them.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageErrors(_Frozen):
    """Relative squared output error after each stage; a stage that the method does not have repeats the one before."""

    base: float
    shared: float
    routed: float


class GroupReport(_Frozen):
    """One input group: the linear layers that read the same activation."""

    name: str
    """Full module path of the group, for example ``model.language_model.layers.0.self_attn.qkv``."""
    block: int
    layers: list[str]
    """Names of the linear layers within their parent module: ``["q_proj", "k_proj", "v_proj"]``."""
    tokens: int
    """Held-out tokens behind the errors."""
    error: StageErrors
    error_vision: StageErrors | None = None
    error_text: StageErrors | None = None
    sqnr_db: float
    """10 log10(||Y||² / ||Y - Y'||²) of the final stage."""
    expert_usage: list[float] = Field(default_factory=list)
    """Share of held-out tokens that the router sends to each expert; sums to 1."""
    smoothing: str
    """The scaling in force, with its parameter: ``none``, ``outlier``, ``smoothquant(0.5)``."""
    effective_bits: float
    """Stored bits per weight of this group: integers, scales, adapters, router, smoothing."""
    warnings: list[str] = Field(default_factory=list)


class BlockReport(_Frozen):
    block: int
    seconds: float
    seconds_by_phase: dict[str, float]
    """``observe fit forward write`` → seconds."""
    groups: list[GroupReport]


class ModelQuality(_Frozen):
    """Next-token behaviour on held-out rows, the quantized model against the full-precision one."""

    rows: int
    tokens: int
    kl: float
    """Mean KL(full ‖ quantized) of the next-token distribution, nats per token."""
    top1_agreement: float
    perplexity_full: float
    perplexity_quantized: float


class Size(_Frozen):
    bytes_before: int
    """Bytes of the tensors of the source checkpoint, all of them, quantized or not."""
    bytes_after: int
    effective_bits: float
    """Stored bits per quantized weight: integers + scales + adapters + routers + smoothing."""
    base_bits: float
    """The same without adapters, routers and smoothing."""
    quantized_weights: int
    """Number of weights that were quantized."""


class QualityReport(_Frozen):
    """The whole report; ``quality_report.json`` in a checkpoint."""

    format: int = 1
    model: str
    scheme: str
    method: str
    blocks: list[BlockReport]
    quality: ModelQuality
    size: Size
    rows_used: int
    rows_held_out: int
    rows_skipped: dict[str, int] = Field(default_factory=dict)
    """Reason → number of calibration rows that were skipped for it."""
    tokens_vision: int = 0
    tokens_text: int = 0
    """Calibration tokens (not held out) by modality."""
    warnings: list[str] = Field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, str] = Field(default_factory=dict)
    """Versions of python, torch, transformers, quant_experts; the device's name."""
