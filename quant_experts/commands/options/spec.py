"""The options of ``qe quantize`` that make the spec and the acceptance limits.

Names are those of ``QuantizationSpec``; where that has parts (``sensitive``, ``budget``, ``target``), each part is
an option of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import click
from pydantic import ValidationError

from quant_experts.fit.registry import names
from quant_experts.spec.choices import LIMITS_OF_SCORES, SCORES
from quant_experts.spec.methods import DEFAULT_METHOD, DEFAULTS, MEASURED_ON, MEASUREMENTS, METHOD_VERSION
from quant_experts.spec.specification import AUTO, PRESETS, AcceptIf, QuantizationSpec

PARTS = {
    "sensitive": {"share": "sensitive_share", "groups": "sensitive_groups", "weight_bits": "sensitive_bits"},
    "budget": {"bits_per_weight": "bits_per_weight"},
    "target": {"max_bytes": "max_bytes", "max_kl": "max_kl"},
}
"""Field of the spec → its parts → the options that give them."""
LIMITS = {
    "max_kl": "accept_max_kl",
    "min_top1_agreement": "accept_min_top1",
    "max_perplexity_increase": "accept_max_perplexity_increase",
    "min_image_sensitivity": "accept_min_image_sensitivity",
    **{limit: f"accept_{limit}" for limit in LIMITS_OF_SCORES},
}
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
LARGEST = 2.0**63
BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", re.IGNORECASE)


class Bytes(click.ParamType[int]):
    """``2.5GB``, ``900 MiB``, ``2500000000``."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = BYTES.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a size: write 2.5GB, 900MiB or a number of bytes", param, ctx)
        size = float(match[1]) * UNITS[match[2].lower()]
        if not size < LARGEST:
            self.fail(f"{value!r} is more than any file has", param, ctx)
        return round(size)


class Finite(click.ParamType[float]):
    """A number that JSON can say: neither ``nan`` nor ``inf``."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


METHOD_HELP = (
    f"Preset of the three slots. Measured on {MEASURED_ON}: "
    + "; ".join(f"{name} {measurements[0].text}" for name, measurements in MEASUREMENTS.items())
    + "."
)
CHOICE = (
    click.option(
        "--scheme",
        default="W4A6",
        show_default=True,
        metavar="WxAy|auto",
        help="W4A6, W4A8, W3A16, W4A16 or any W2-8, A4-8 or A16; auto searches within --max-bytes or --max-kl.",
    ),
    click.option("--max-bytes", type=Bytes(), metavar="SIZE", help="With auto: the best within this size, as 2.5GB."),
    click.option("--max-kl", type=Finite(), metavar="F", help="With auto: the smallest within this KL, nats a token."),
    click.option(
        "--method", default=DEFAULT_METHOD, show_default=True, type=click.Choice(list(PRESETS)), help=METHOD_HELP
    ),
)
"""Scheme and method."""
REFINEMENTS = (
    click.option(
        "--smoothing",
        metavar="NAME",
        help="Smoothing instead of the preset's; rotation spreads outliers over all channels, and search tries it too.",
    ),
    click.option(
        "--smoothquant-alpha", type=Finite(), metavar="F", help="Exponent of smoothquant, 0 to 1.  [default: 0.5]"
    ),
    click.option("--rounding", metavar="NAME", help="Rounding instead of the preset's."),
    click.option("--reconstruction", metavar="NAME", help="Reconstruction instead of the preset's."),
    click.option("--samples", type=int, metavar="N", help="Calibration rows to use.  [default: 128]"),
    click.option("--seed", type=int, metavar="S", help="Seed of every random choice.  [default: 0]"),
    click.option(
        "--group-size",
        metavar="32|64|128|channel",
        help="Input channels per weight scale.  [default: the largest of 128, 64, 32 that divides]",
    ),
    click.option(
        "--weight-grid",
        type=click.Choice(["max", "searched"]),
        help="How the scales of weights are found.  [default: searched; qe-paper: max]",
    ),
    click.option(
        "--method-version",
        type=click.Choice([str(version) for version in DEFAULTS]),
        help="Whose defaults the other options have; 1 to 3 repeat runs of older releases.  "
        f"[default: {METHOD_VERSION}]",
    ),
    click.option("--shared-rank", type=int, metavar="R", help="Rank of the shared expert.  [default: what fits]"),
    click.option("--routed-rank", type=int, metavar="R", help="Rank of each routed expert.  [default: what fits]"),
    click.option("--experts", type=int, metavar="N", help="Number of routed experts.  [default: what fits]"),
    click.option(
        "--important-channels", type=int, metavar="K", help="Channels counted as important per token.  [default: 32]"
    ),
    click.option(
        "--refine",
        type=click.Choice(["none", "routed", "all"]),
        help="Train the experts after the fit.  [default: none]",
    ),
    click.option(
        "--adapter-dtype", type=click.Choice(["bf16", "int8"]), help="How experts are stored.  [default: int8]"
    ),
    click.option(
        "--vision",
        type=click.Choice(["keep", "quantize"]),
        help="The vision tower and its merger: quantizing them costs the most accuracy.  [default: keep]",
    ),
    click.option(
        "--sensitive-share",
        type=Finite(),
        metavar="F",
        help="This share of the weights keeps more bits, most sensitive first.",
    ),
    click.option(
        "--sensitive-groups",
        multiple=True,
        metavar="NAME",
        help="This input group keeps more bits, as layers.0.mlp.down; repeatable.",
    ),
    click.option("--sensitive-bits", type=click.Choice(["6", "8"]), help="The bits that they keep.  [default: 8]"),
    click.option(
        "--bits-per-weight",
        type=Finite(),
        metavar="F",
        help="Budget of stored bits that the most sensitive groups fill up.",
    ),
    click.option(
        "--accept-max-kl",
        type=Finite(),
        metavar="F",
        help="Reject it when the KL to full precision is larger.",
    ),
    click.option("--accept-min-top1", type=Finite(), metavar="F", help="Reject it when the next token agrees less."),
    click.option(
        "--accept-max-perplexity-increase",
        type=Finite(),
        metavar="F",
        help="Reject it when perplexity grows more; 0.02 is 2 percent.",
    ),
    click.option(
        "--accept-min-image-sensitivity",
        type=Finite(),
        metavar="F",
        help="Reject it when the reaction to another image, relative to full precision, is less.",
    ),
    *(
        option
        for score in SCORES
        for option in (
            click.option(
                f"--accept-min-{score.replace('_', '-')}",
                type=Finite(),
                metavar="F",
                help=f"Reject it when {score.replace('_', ' ')} of --evaluation is less.",
            ),
            click.option(
                f"--accept-max-{score.replace('_', '-')}-drop",
                type=Finite(),
                metavar="F",
                help=f"Reject it when {score.replace('_', ' ')} drops more; 0.02 is two points.",
            ),
        )
    ),
)


def spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: all of them, in the order in which the help lists them."""
    for option in reversed((*CHOICE, *REFINEMENTS)):
        command = option(command)
    return command


def refining_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: those that go with any scheme and method."""
    for option in reversed(REFINEMENTS):
        command = option(command)
    return command


def names_of_spec_options() -> set[str]:
    """The spec, from the arguments that a command with ``spec_options`` gets."""
    command = click.command("any")(spec_options(lambda **_: None))
    return {parameter.name for parameter in command.params if parameter.name}


def is_given(context: click.Context, option: str) -> bool:
    """Whether the user gave the option, and not its default."""
    return context.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT


def spec_of(method: str, **options: Any) -> tuple[QuantizationSpec, AcceptIf | None]:
    """Raises UsageError that names the first option at fault."""
    options = {name: value for name, value in options.items() if value not in (None, ())}
    _check_together(options)
    size = options.get("group_size", "")
    if size.isdecimal():
        options["group_size"] = int(size)
    for name in ("sensitive_bits", "method_version"):
        if name in options:
            options[name] = int(options[name])
    limits = _taken(options, LIMITS)
    options |= {field: part for field, flags in PARTS.items() if (part := _taken(options, flags))}
    try:
        spec = QuantizationSpec.preset(method, **options)
        accept_if = AcceptIf(**limits) if limits else None
    except ValidationError as error:
        raise _usage_error(error) from error
    for slot in ("smoothing", "rounding", "reconstruction"):
        if slot in options and options[slot] not in (choices := names(f"quant_experts.fit.{slot}")):
            raise click.UsageError(f"--{slot} {options[slot]}: choose one of {', '.join(choices)}")
    return spec, accept_if


def body_of(**options: Any) -> dict[str, Any]:
    """The same options as fields of ``POST /v1/jobs``; the service checks their values.

    Raises UsageError for options that exclude each other. Loads no slot, hence no torch.
    """
    options = {name: value for name, value in options.items() if value not in (None, ())}
    _check_together(options)
    return changes_of(**options)


def changes_of(**options: Any) -> dict[str, Any]:
    """Fields of a job for the given options alone; a changed job has the others."""
    size = options.get("group_size", "")
    if size.isdecimal():
        options["group_size"] = int(size)
    for name in ("sensitive_bits", "method_version"):
        if name in options:
            options[name] = int(options[name])
    if "sensitive_groups" in options:
        options["sensitive_groups"] = list(options["sensitive_groups"])
    fields: dict[str, Any] = {name: options.pop(name) for name in ("scheme", "method") if name in options}
    limits = _taken(options, LIMITS)
    parts = {field: part for field, flags in PARTS.items() if (part := _taken(options, flags))}
    fields |= {"target": parts.pop("target", None), "accept_if": limits, "options": {**options, **parts}}
    return {name: value for name, value in fields.items() if value}


def _check_together(options: Mapping[str, Any]) -> None:
    """Checks of the spec, with messages that name options."""
    target = [name for name in ("max_bytes", "max_kl") if name in options]
    sensitive = [name for name in ("sensitive_share", "sensitive_groups") if name in options]
    settings = [*sensitive, *(["bits_per_weight"] if "bits_per_weight" in options else [])]
    if options.get("scheme") == AUTO and not target:
        raise click.UsageError("--scheme auto: give --max-bytes or --max-kl")
    if target and options.get("scheme") != AUTO:
        raise click.UsageError(f"{_flag(target[0])} goes with --scheme auto")
    if len(target) > 1:
        raise click.UsageError("--max-bytes and --max-kl: give one of them")
    if len(settings) > 1:
        raise click.UsageError(
            f"{' and '.join(map(_flag, settings))} both choose the groups that keep more bits: give one"
        )
    if target and settings:
        raise click.UsageError(f"--scheme auto chooses the sensitive groups itself: leave out {_flag(settings[0])}")
    if "sensitive_bits" in options and not sensitive:
        raise click.UsageError("--sensitive-bits goes with --sensitive-share or --sensitive-groups")


def _taken(options: dict[str, Any], flags: Mapping[str, str]) -> dict[str, Any]:
    """Take the options ``flags`` out of ``options``, under the names of the fields that they fill."""
    return {name: options.pop(option) for name, option in flags.items() if option in options}


def _usage_error(error: ValidationError) -> click.UsageError:
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return click.UsageError(message)
    flags: Mapping[str, str] = LIMITS if error.title == AcceptIf.__name__ else PARTS.get(str(first["loc"][0]), {})
    whole, *parts = map(str, first["loc"])
    field = parts[0] if parts and whole in PARTS else whole  # of a number or a word, parts say which it is not
    return click.UsageError(f"{_flag(flags.get(field, field))} {first['input']}: {message}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
