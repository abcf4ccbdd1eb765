"""Whisper: an encoder of audio, and a decoder that reads the encoder's output in every block."""

from __future__ import annotations

from quant_experts.model.families.family import Family
from quant_experts.model.families.stack import Groups, Stack

FEED_FORWARD: Groups = (("", "fc1", ("fc1",)), ("", "fc2", ("fc2",)))
SELF_ATTENTION: Groups = (
    ("self_attn", "qkv", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", "out", ("out_proj",)),
)

WHISPER = Family(
    "WhisperForConditionalGeneration",
    "model.decoder",
    groups=(
        *SELF_ATTENTION,
        ("encoder_attn", "q", ("q_proj",)),
        ("encoder_attn", "kv", ("k_proj", "v_proj")),
        ("encoder_attn", "out", ("out_proj",)),
        *FEED_FORWARD,
    ),
    memory=("encoder_attn.kv",),
    encoder=Stack("encoder", "model.encoder", (*SELF_ATTENTION, *FEED_FORWARD), embeds=None, media="audio"),
    head="proj_out",
)
