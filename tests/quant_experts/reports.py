"""A made-up report with everything in it, consistent in itself: what a run on a model of 28 blocks could have said."""

from __future__ import annotations

from typing import Any

import numpy as np

from quant_experts.report.data import (
    Acceptance,
    AutoSearch,
    BlockReport,
    CalibrationQuality,
    ChannelStatistics,
    FrequencyPoint,
    FrontierPoint,
    GroupReport,
    GroupSensitivity,
    ImageSensitivity,
    Interval,
    MixedPrecision,
    ModelQuality,
    QualityReport,
    Reaction,
    Reply,
    Size,
    StageErrors,
    TaskEvaluation,
    TaskReply,
    TaskScore,
)

KINDS = {
    "self_attn.qkv": (["q_proj", "k_proj", "v_proj"], 1536, 0.011),
    "self_attn.o": (["o_proj"], 1536, 0.006),
    "mlp.gate_up": (["gate_proj", "up_proj"], 1536, 0.009),
    "mlp.down": (["down_proj"], 8960, 0.024),
}
EXPERTS = 8
RECIPE: dict[str, Any] = {
    "model": {"id": "Qwen/Qwen2-VL-2B-Instruct", "commit": "895c3a49" * 5, "fingerprint": "5e" * 32},
    "calibration": {"name": "coco-captions-128.jsonl", "split": "train", "fingerprint": "a7" * 32},
    "spec": {
        "scheme": "W4A6", "method": "qe", "smoothing": "search", "rounding": "rtn", "reconstruction": "qe",
        "group_size": "auto", "shared_rank": 32, "routed_rank": 32, "experts": EXPERTS, "important_channels": 32,
        "adapter_dtype": "int8", "sensitive": {"share": 0.1, "weight_bits": 8}, "samples": 128,
        "holdout": 0.1, "seed": 0,
    },
}  # fmt: skip


def rich_report(blocks: int = 28, **changes: Any) -> QualityReport:
    """Every optional field is filled."""
    random = np.random.default_rng(7)
    made = [_block(random, n, blocks) for n in range(blocks)]
    groups = [group for block in made for group in block.groups]
    kept = sorted(groups, key=lambda group: group.sensitivity.kl if group.sensitivity else 0, reverse=True)[
        : len(groups) // 10
    ]
    names = [group.name for group in kept]
    made = [
        block.model_copy(
            update={
                "groups": [
                    g.model_copy(
                        update={
                            "weight_bits": 8 if g.name in names else 4,
                            "effective_bits": 9.9 if g.name in names else 5.9,
                        }
                    )
                    for g in block.groups
                ]
            }
        )
        for block in made
    ]
    halves = [(g.channels.split_half or 0, g.name) for g in groups if g.channels]
    unseen = [(g.channels.unseen_share or 0, g.name) for g in groups if g.channels]
    idle = sum(share == 0 for g in groups for share in g.expert_usage)
    values: dict[str, Any] = {
        "model": "Qwen/Qwen2-VL-2B-Instruct",
        "scheme": "W4A6",
        "method": "qe",
        "blocks": made,
        "quality": ModelQuality(
            rows=13, tokens=4212, kl=0.02143, top1_agreement=0.9412, perplexity_full=6.318, perplexity_quantized=6.427,
            kl_standard_error=0.00187,
        ),
        "baseline": ModelQuality(
            rows=13, tokens=4212, kl=0.12871, top1_agreement=0.8673, perplexity_full=6.318, perplexity_quantized=7.144,
            kl_standard_error=0.01033,
        ),
        "size": Size(
            bytes_before=4_418_050_048, bytes_after=2_356_113_408, effective_bits=6.27, base_bits=4.53,
            quantized_weights=1_309_147_136, effective_bits_bf16=7.02,
        ),
        "calibration": CalibrationQuality(
            verdict="thin",
            reasons=[
                f"The halves of the calibration rows agree only {min(halves)[0]:.2f} about the channels of "
                f"{min(halves)[1]}: use 256 rows or more.",
                "9,114 of 41,870 calibration tokens are text (22 %): add rows with longer answers.",
            ],
            split_half_mean=sum(h for h, _ in halves) / len(halves),
            split_half_worst=min(halves)[0],
            split_half_worst_group=min(halves)[1],
            unseen_share_mean=sum(u for u, _ in unseen) / len(unseen),
            unseen_share_worst=max(unseen)[0],
            unseen_share_worst_group=max(unseen)[1],
            idle_experts=idle,
            experts=EXPERTS * len(groups),
        ),
        "evaluation": TaskEvaluation(
            dataset="questions.jsonl", rows=2, rows_skipped={"its prompt is too long": 1}, max_new_tokens=16,
            scores=[
                TaskScore(
                    name=name, rows=2, full=Interval(value=0.9123, low=0.8, high=0.97),
                    quantized=Interval(value=0.8211, low=0.7, high=0.93),
                    difference=Interval(value=-0.091, low=-0.151, high=0.012),
                )
                for name in ("exact_match", "edit_similarity")
            ],
            replies=[
                TaskReply(
                    row=n, question="Which year & why?", reference="1984", full="1984", quantized=text, full_ended=True,
                    quantized_ended=n == 1, scores_full=dict.fromkeys(("exact_match", "edit_similarity"), 1.0),
                    scores_quantized={"exact_match": float(n == 1), "edit_similarity": 0.75},
                )
                for n, text in ((1, "1984"), (2, "<b>1989</b>"))
            ],
        ),
        "replies": [
            Reply(
                row=7, question="What is the woman at the counter holding?",
                answer="She is holding a cup of coffee and a folded newspaper.",
                full="She is holding a cup of coffee and a newspaper newspaper.",
                quantized="She is holding a cup of coffee and a book newspaper.", agreement=0.923,
            ),
            Reply(
                row=31, question="How many boats are there?", answer="Three boats lie in the harbour.",
                full="There boats are in the water.", quantized="There boats are in the water.", agreement=1.0,
            ),
        ],
        "images": ImageSensitivity(
            rows=13, tokens=1020, swapped=Reaction(full=1.874, quantized=1.622),
            blanked=Reaction(full=2.41, quantized=2.188),
            verdict="keeps_looking",
        ),
        "acceptance": Acceptance(
            limits={"max_kl": 0.05, "min_top1_agreement": 0.95, "min_image_sensitivity": 0.8},
            verdict="rejected",
            missed=["The same next token is picked 94.1 % of the time; at least 95 % were asked for."],
        ),
        "mixed_precision": MixedPrecision(weight_bits=8, groups=names, share=0.0974, decided_by="share"),
        "auto": _search(),
        "rows_used": 115,
        "rows_held_out": 13,
        "rows_skipped": {"too long": 2},
        "tokens_vision": 32_756,
        "tokens_text": 9_114,
        "warnings": ["3 calibration rows had their images made smaller to fit"],
        "seconds": 1387.4,
        "environment": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "device": "NVIDIA H100"},
    }  # fmt: skip
    return QualityReport(**{**values, **changes})


def _block(random: np.random.Generator, number: int, blocks: int) -> BlockReport:
    depth = 1 + 1.5 * abs(number / max(1, blocks - 1) - 0.35)
    groups = [
        _group(random, number, kind, layers, width, error * depth * float(random.lognormal(0, 0.25)))
        for kind, (layers, width, error) in KINDS.items()
    ]
    phases = {"observe": 14.1, "fit": 27.9, "forward": 4.2, "write": 1.3}
    return BlockReport(block=number, seconds=47.5, seconds_by_phase=phases, groups=groups)


def _group(
    random: np.random.Generator, block: int, kind: str, layers: list[str], width: int, rounding: float
) -> GroupReport:
    shared = rounding * float(random.uniform(0.5, 0.7))
    routed = shared * float(random.uniform(0.72, 0.99))
    vision = float(random.lognormal(0.2, 0.4))
    usage = random.dirichlet([1.2] * EXPERTS)
    if random.random() < 0.08:
        usage[int(random.integers(EXPERTS))] = 0.0
    usage /= usage.sum()

    def stages(factor: float) -> StageErrors:
        return StageErrors(base=3.1 * rounding * factor, shared=shared * factor, routed=routed * factor)

    head = 1 / (1 + np.exp((np.log(np.arange(1, width + 1)) - 3.4) * 2.1))
    ranks = np.unique(np.geomspace(1, width, 64).astype(int))
    return GroupReport(
        name=f"model.language_model.layers.{block}.{kind}",
        block=block,
        layers=layers,
        tokens=4212,
        error=stages(1.0),
        error_vision=stages(vision),
        error_text=stages(1 / vision),
        error_rtn=rounding,
        sqnr_db=float(-10 * np.log10(routed)),
        expert_usage=[float(share) for share in usage],
        smoothing=["outlier", "smoothquant(0.5)", "smoothquant(0.75)"][int(random.integers(3))],
        effective_bits=5.9,
        weight_bits=4,
        channels=ChannelStatistics(
            independent=32,
            dependent=256,
            curve=[FrequencyPoint(rank=int(rank), share=float(0.97 * head[rank - 1])) for rank in ranks],
            split_half=float(random.uniform(0.74, 0.97)),
            unseen_share=float(random.uniform(0.0, 0.07)),
        ),
        sensitivity=GroupSensitivity(
            mean_abs=float(random.lognormal(-1, 0.5)),
            variance=float(random.lognormal(0, 1)),
            kl=float(random.lognormal(-7, 1.1)),
        ),
        warnings=["rank 32 is more than the width allows, 16 is used"] if (block, kind) == (3, "self_attn.o") else [],
    )


def _search() -> AutoSearch:
    tried = [
        ("W3A16 · no experts", 1.70e9, 3.6, 0.31), ("W4A6 · no experts", 1.95e9, 4.6, 0.128),
        ("W4A6 · 4 experts of rank 16", 2.08e9, 5.2, 0.061), ("W4A6 · 8 experts of rank 16", 2.15e9, 5.5, 0.047),
        ("W4A6 · 8 experts of rank 32", 2.31e9, 6.1, 0.031),
        ("W4A6 · 8 experts of rank 32 · 10 % at 8 bits", 2.36e9, 6.3, 0.022),
        ("W4A8 · 8 experts of rank 32", 2.31e9, 6.1, 0.027), ("W8A8 · no experts", 2.92e9, 8.6, 0.004),
        ("W6A8 · no experts", 2.44e9, 6.6, 0.036),
    ]  # fmt: skip
    return AutoSearch(
        target={"max_bytes": 2.4e9},
        points=[
            FrontierPoint(label=label, options={}, bytes=int(size), effective_bits=bits, kl=kl, chosen="10 %" in label)
            for label, size, bits, kl in tried
        ],
        rows=8,
        seconds=212.0,
    )
