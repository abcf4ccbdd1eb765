"""Quantization schemes: how many bits the weights and the activations get.

A scheme is written ``W<weight bits>A<activation bits>``. Weights take 2 to 8 bits; activations take 4 to 8, or 16,
which means that they are left as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

WEIGHT_BITS = range(2, 9)
ACTIVATION_BITS = (4, 5, 6, 7, 8, 16)
UNQUANTIZED = 16


@dataclass(frozen=True)
class Scheme:
    """Bit widths of one quantized layer.

    ``weight_bits``: symmetric integers, one scale per (row, group of input channels).
    ``activation_bits``: symmetric integers, one dynamic scale per token; 16 leaves activations unquantized.
    """

    weight_bits: int
    activation_bits: int

    @property
    def name(self) -> str:
        return f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def quantizes_activations(self) -> bool:
        return self.activation_bits != UNQUANTIZED


NAMED = {scheme.name: scheme for scheme in (Scheme(4, 6), Scheme(4, 8), Scheme(3, 16), Scheme(4, 16))}
"""The schemes that documentation and benchmarks speak of. Any other width within bounds works the same way."""


def parse_scheme(text: str) -> Scheme:
    """``"W4A6"`` → ``Scheme(4, 6)``. Raises ValueError that says which widths exist."""
    match = re.fullmatch(r"[Ww](\d{1,2})[Aa](\d{1,2})", text.strip())
    if match is None:
        raise ValueError(f"scheme {text!r}: write W<bits>A<bits>, for example {', '.join(NAMED)}")
    weight_bits, activation_bits = int(match[1]), int(match[2])
    if weight_bits not in WEIGHT_BITS:
        raise ValueError(f"scheme {text!r}: weights take 2 to 8 bits, not {weight_bits}")
    if activation_bits not in ACTIVATION_BITS:
        raise ValueError(f"scheme {text!r}: activations take 4 to 8 bits or 16 (unquantized), not {activation_bits}")
    return Scheme(weight_bits, activation_bits)
