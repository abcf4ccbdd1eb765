"""OPT: feed-forward layers directly in the block, biases everywhere, learned positions beside the embeddings."""

from __future__ import annotations

from typing import Any

from quant_experts.model.families.family import Family
from quant_experts.model.families.stack import Groups

GROUPS: Groups = (
    ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", "o", ("out_proj",)),
    ("", "fc1", ("fc1",)),
    ("", "fc2", ("fc2",)),
)


def _refusal(config: dict[str, Any]) -> str | None:
    """``project_in`` sits between the embeddings and the blocks (OPT-350m only): relays would feed it wide states."""
    width, embedded = config.get("hidden_size"), config.get("word_embed_proj_dim")
    if embedded is not None and embedded != width:
        return (
            f"word_embed_proj_dim {embedded} differs from hidden_size {width}: OPT models that project their "
            "embeddings are not supported; use one of the other sizes"
        )
    return None


OPT = Family("OPTForCausalLM", "model.decoder", groups=GROUPS, refusal=_refusal)
