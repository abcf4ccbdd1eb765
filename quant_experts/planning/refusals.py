"""What a job would fail with after minutes or hours, and that can be known now."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from quant_experts.planning.blocks import Group
from quant_experts.planning.cautions import ROWS_UNREAD, Caution
from quant_experts.planning.errors import Refusal
from quant_experts.planning.families import FAMILIES
from quant_experts.planning.headers import ModelHeaders
from quant_experts.planning.image_tokens import MOST_RATIO
from quant_experts.planning.recipe import AUTO, OBQ_WIDTH, Recipe
from quant_experts.planning.rows import MOST_BAD, Rows
from quant_experts.planning.shapes import Shapes
from quant_experts.planning.sizes import Size, is_named
from quant_experts.spec.limits import MOST_ROWS
from quant_experts.spec.methods import MOST_WEIGHT_BITS

FEWEST_ROWS = 3


def refusals_of(shapes: Shapes, recipe: Recipe, rows: Rows, size: Size, headers: ModelHeaders) -> tuple[Refusal, ...]:
    """Every one of them, not the first alone."""
    return (
        *(Refusal("invalid_model", sentence, "/model/id") for sentence in headers.missing),
        *_stacks(shapes, recipe, headers.config),
        *_widths(shapes, recipe),
        *_experts(recipe),
        *_sensitive(shapes, recipe),
        *_budget(recipe, size),
        *_target(recipe, size),
        *_rows(rows, shapes),
        *_evaluation(shapes, recipe),
    )


def _stacks(shapes: Shapes, recipe: Recipe, config: Mapping[str, Any]) -> Iterator[Refusal]:
    """Towers that cannot be quantized."""
    if recipe.vision == "quantize":
        family = shapes.family
        layer = config.get("vision_feature_layer", config.get("select_layer", -1))
        if family.tower is None:
            able = ", ".join(name for name, other in FAMILIES.items() if other.tower is not None)
            what = "has a vision tower that cannot be quantized" if family.vision else "has no vision tower"
            reason = f"{family.model_class} {what}; it works for {able}"
            yield Refusal("invalid_spec", f'vision "quantize": {reason}', "/options/vision")
        elif layer != -1:
            reason = (
                f"the model takes the output of layer {layer} of its vision tower, and only towers whose last layer"
            )
            yield Refusal("invalid_spec", f'vision "quantize": {reason} is taken can be quantized', "/options/vision")


def _evaluation(shapes: Shapes, recipe: Recipe) -> Iterator[Refusal]:
    if recipe.evaluation is not None and shapes.family.encoder is not None:
        sentence = "evaluation: a speech model's transcripts are not generated yet; leave evaluation out"
        yield Refusal("invalid_spec", sentence, "/evaluation")


def _widths(shapes: Shapes, recipe: Recipe) -> Iterator[Refusal]:
    if isinstance(recipe.group_size, int):
        wrong = next((group for group in shapes.groups if group.width % recipe.group_size), None)
        if wrong is not None:
            yield Refusal(
                "invalid_spec",
                f"group size {recipe.group_size} does not divide the input width {wrong.width} of {wrong.name}; choose "
                'one that does, or "channel", or leave it out',
                "/options/group_size",
            )
    if recipe.rounding == "obq":
        wide = next((group for group in shapes.groups if group.width > OBQ_WIDTH), None)
        if wide is not None:
            yield Refusal(
                "invalid_spec",
                f"rounding obq: input group {wide.name} is {wide.width} channels wide and the limit is "
                f"{OBQ_WIDTH}; use gptq",
                "/options/rounding",
            )


def _experts(recipe: Recipe) -> Iterator[Refusal]:
    experts = recipe.experts if recipe.reconstruction == "qe" else 0
    if recipe.reconstruction != "none" and not experts and not recipe.shared_rank:
        yield Refusal(
            "invalid_spec",
            f'reconstruction "{recipe.reconstruction}" is left without any expert: raise shared_rank or experts, or '
            'choose reconstruction "none"',
            "/options/shared_rank",
        )
    if recipe.reconstruction == "qe" and not experts and recipe.refine != "none":
        yield Refusal("invalid_spec", "refine trains routed experts, and experts is 0", "/options/refine")


def _sensitive(shapes: Shapes, recipe: Recipe) -> Iterator[Refusal]:
    if recipe.sensitive is None or recipe.scheme == AUTO:
        return
    bits = int(recipe.sensitive.get("weight_bits", 8))
    if bits <= recipe.bits[0]:
        yield Refusal(
            "invalid_spec",
            f"sensitive.weight_bits {bits} is not more than the {recipe.bits[0]} bits of scheme {recipe.scheme}",
            "/options/sensitive/weight_bits",
        )
    for index, name in enumerate(recipe.sensitive.get("groups") or ()):
        if not any(is_named(group, [name]) for group in shapes.groups):
            yield Refusal(
                "invalid_spec",
                f"no input group is called {name!r}; {_near(name, shapes.groups)}",
                f"/options/sensitive/groups/{index}",
            )


def _near(name: str, groups: list[Group]) -> str:
    length = name.count(".") + 1
    ends = dict.fromkeys(".".join(group.name.split(".")[-length:]) for group in groups)
    close = difflib.get_close_matches(name, ends, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"names are like {groups[0].name}, or an end of it"


def _budget(recipe: Recipe, size: Size) -> Iterator[Refusal]:
    if recipe.budget is None or recipe.scheme == AUTO:
        return
    if recipe.bits[0] >= MOST_WEIGHT_BITS:
        yield Refusal(
            "invalid_spec", f"budget: scheme {recipe.scheme} has the most weight bits already", "/options/budget"
        )
    elif recipe.budget["bits_per_weight"] < size.bits_least:
        yield Refusal(
            "invalid_spec",
            f"budget: {recipe.budget['bits_per_weight']:g} bits per weight are less than the {size.bits_least:.3f} "
            f"that {recipe.scheme} takes with its scales and adapters on this model; give more, or fewer experts, "
            "smaller ranks or int8 adapters",
            "/options/budget/bits_per_weight",
        )


def _target(recipe: Recipe, size: Size) -> Iterator[Refusal]:
    most = (recipe.target or {}).get("max_bytes")
    if most is not None and most < size.bytes_after_least:
        yield Refusal(
            "invalid_spec",
            f"target: {most} bytes are less than the {size.bytes_after_least} that the smallest checkpoint takes, of "
            "which embeddings, head and vision tower are never quantized",
            "/target/max_bytes",
        )


def _rows(rows: Rows, shapes: Shapes) -> Iterator[Refusal]:
    bad = bad_rows(rows, shapes)
    if len(bad) > MOST_BAD * rows.sampled:
        more = (
            f"; {len(bad)} of {rows.sampled} rows cannot be used, at most {MOST_BAD:.0%} may be" if len(bad) > 1 else ""
        )
        yield Refusal("invalid_calibration", f"{bad[0].message}{more}", bad[0].pointer)
    if rows.rows is not None and rows.rows < FEWEST_ROWS:
        yield Refusal(
            "invalid_calibration",
            f"{rows.rows} calibration rows, of which 2 are held out to measure: give at least {FEWEST_ROWS}",
            "/calibration/dataset",
        )


def skipped_rows(rows: Rows, shapes: Shapes) -> Iterator[Caution]:
    """What a run does with a few rows that are of no use."""
    bad = bad_rows(rows, shapes)
    if bad and len(bad) <= MOST_BAD * rows.sampled:
        of = f"{len(bad)} of {rows.sampled} rows will be skipped"
        yield Caution("rows_skipped", f"{bad[0].message}; {of}", bad[0].pointer)


def unread_rows(rows: Rows) -> Iterator[Caution]:
    """What a run does with more rows than it reads."""
    if rows.rows is not None and rows.rows > MOST_ROWS:
        yield Caution("rows_unread", ROWS_UNREAD, "/calibration/dataset")


def bad_rows(rows: Rows, shapes: Shapes) -> list[Refusal]:
    """Of those that were looked at, what each is refused for."""
    beyond = {number: token for number, token in rows.largest_tokens if token >= shapes.vocabulary}
    return [
        Refusal(
            "invalid_calibration",
            f"calibration row {number}: token {beyond[number]} is beyond the model's {shapes.vocabulary} embeddings; "
            "tokens were added to the tokenizer and the model was not resized (resize_token_embeddings), or the "
            "tokenizer is another model's",
            "/model/id",
        )
        if number in beyond
        else Refusal(
            "invalid_calibration",
            f"calibration row {number}: an image is more than {MOST_RATIO} times as long as wide, which the model's "
            "processor refuses; crop it, or leave the row out",
            "/calibration/dataset",
        )
        for number in sorted({*beyond, *rows.too_long})
    ]
