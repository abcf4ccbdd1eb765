"""What the accuracy benchmark compares, as specs: every preset, the same with QE's search, equal bytes, ablations.

Ranks are those of Qwen2-VL-2B scaled to a width of 192: shared 8 + routed 8, so 16 are active for a token, and k = 4
important channels (the published 32 of 1536). No method is tuned less than QE: all see the same rows, QE's own grid of
scalings is offered to RTN, LQER and ASER too, and SmoothQuant's alpha is chosen from the same values on the
calibration rows that are held out from fitting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from quant_experts.fit import reconstruction, rounding, smoothing
from quant_experts.fit.smoothing.search import ALPHAS
from quant_experts.spec.specification import PRESETS, QuantizationSpec

SHARED, ROUTED, EXPERTS, IMPORTANT = 8, 8, 8, 4
ACTIVE = SHARED + ROUTED
COMMON: dict[str, Any] = {"group_size": 64, "important_channels": IMPORTANT, "experts": EXPERTS}
WIDTHS = ((192, 320), (192, 192), (192, 1024), (512, 192))
"""(input width, outputs together) of the four input groups of a block."""

SCHEMES = ("W4A8", "W4A6", "W3A16")
STRESS = ("W4A4", "W3A4", "W2A8")

SEEDLESS = {"rtn", "svd"}
"""Presets whose integers do not depend on the calibration rows."""


def stored_rank() -> int:
    """The rank of one static adapter that takes the bytes of QE's adapters and routers, rounded up in its favour."""
    sides = sum(width + outs for width, outs in WIDTHS)
    numbers = (SHARED + EXPERTS * ROUTED) * sides + EXPERTS * sum(width for width, _ in WIDTHS)
    return -(-numbers // sides)


@dataclass(frozen=True)
class Method:
    """``candidates``: options over the preset; of several, the one with the smallest KL on held-out calibration rows
    counts. ``stored``: a static adapter of QE's bytes, not of its active rank. ``grouped``: layers that read the same
    input share smoothing, down projections and router; else each layer is fitted for itself, as published. ``slow``:
    one seed has to do."""

    label: str
    preset: str
    candidates: tuple[dict[str, Any], ...] = field(default=({},))
    stored: bool = False
    grouped: bool = True
    slow: bool = False

    @property
    def one_seed(self) -> bool:
        """A second calibration seed would bring the same integers, or takes too long."""
        return self.slow or (self.preset in SEEDLESS and self.candidates == ({"shared_rank": ACTIVE},))

    def specs(self, scheme: str, seed: int, rows: int, holdout: float) -> Iterator[QuantizationSpec]:
        common = {**COMMON, "shared_rank": SHARED, "routed_rank": ROUTED}
        for options in self.candidates:
            yield QuantizationSpec.preset(
                self.preset, scheme=scheme, seed=seed, samples=rows, holdout=holdout, **{**common, **options}
            )


def methods() -> list[Method]:
    """Every preset whose slots are there, and what makes the comparison fair."""
    found = [_preset(name) for name in PRESETS if _there(name)]
    search = {"smoothing": "search", "shared_rank": ACTIVE}
    found += [
        Method("rtn + search", "rtn", (search,)),
        Method("lqer + search", "lqer", (search,)),
        Method("aser + search", "aser", (search,)),
        Method("gptq + search + aser", "aser", ({**search, "rounding": "gptq"},)),
        Method("aser, bytes of qe", "aser", ({"shared_rank": stored_rank()},), stored=True),
        Method("aser + search, bytes of qe", "aser", ({**search, "shared_rank": stored_rank()},), stored=True),
    ]
    return found


def _preset(name: str) -> Method:
    if name.startswith("qe"):
        return Method(name, name)
    if name == "smoothquant":
        alphas = tuple({"shared_rank": ACTIVE, "smoothquant_alpha": alpha} for alpha in ALPHAS)
        return Method(name, name, alphas)
    return Method(name, name, ({"shared_rank": ACTIVE},))


def _there(name: str) -> bool:
    slots = {"smoothing": smoothing, "rounding": rounding, "reconstruction": reconstruction}
    return all(PRESETS[name][slot] in package.names() for slot, package in slots.items())


def ablations() -> list[Method]:
    """QE with one thing changed."""

    def qe(label: str, *, grouped: bool = True, slow: bool = False, **options: Any) -> Method:
        return Method(label, "qe", (options,), grouped=grouped, slow=slow)

    found = [
        qe("qe"),
        qe("shared only, rank 8", experts=0),
        qe("shared only, rank 16", experts=0, shared_rank=ACTIVE),
        qe("routed only, rank 8", shared_rank=0),
        qe("routed only, rank 16", shared_rank=0, routed_rank=ACTIVE),
        qe("shared + random routing", router="random"),
        qe("shared + norm router", router="norm"),
        qe("random clusters", clustering="random"),
        qe("no Lloyd rounds", lloyd_rounds=0),
        qe("no Lloyd rounds, norm router", lloyd_rounds=0, router="norm"),
        qe("no Lloyd rounds, random routing", lloyd_rounds=0, router="random"),
        qe("no Lloyd rounds, random clusters", lloyd_rounds=0, clustering="random"),
        qe("no Lloyd rounds, random clusters, norm router", lloyd_rounds=0, clustering="random", router="norm"),
        qe("columns not exempt", exempt=False),
        qe("each layer for itself", grouped=False),
        qe("refined: routed", refine="routed", slow=True),
        qe("refined: all", refine="all", slow=True),
        qe("scaling: none", smoothing="none"),
        qe("scaling: outlier, as published", smoothing="outlier"),
        qe("adapters in int8", adapter_dtype="int8"),
    ]
    found += [qe(f"N_r = {count}", experts=count) for count in (2, 4, 16)]
    found += [qe(f"k = {count}", important_channels=count) for count in (2, 8, 16, 32, 64)]
    return found


METHODS_BY_LABEL = {method.label: method for method in methods()}
