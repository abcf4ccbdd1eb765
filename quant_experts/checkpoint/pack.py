"""Integers of 2 to 8 bits packed densely in 32-bit words, exactly as compressed-tensors' ``pack-quantized`` does.

The inverse, ``quant_experts.forward.modeling_quant_experts.unpack``, lives with the layer that runs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """codes: (rows, columns) int8 in [-2^(bits-1), 2^(bits-1) - 1]; returns (rows, ceil(columns * bits / 32)) int32.

    Each row is one stream of bit fields, lowest bit first, holding the value plus 2^(bits-1); a field may straddle two
    words, and only the end of a row is padded. Raises ValueError for a code out of range, which would spoil others.
    """
    offset = 2 ** (bits - 1)
    if codes.numel() and (int(codes.min()) < -offset or int(codes.max()) >= offset):
        raise ValueError(f"codes from {int(codes.min())} to {int(codes.max())} do not fit {bits} bits")
    rows, columns = codes.shape
    # Thirty-two fields fill exactly `bits` words.
    periods, words = -(-columns // 32), -(-columns * bits // 32)
    fields = torch.nn.functional.pad(codes.to(torch.int16) + offset, (0, periods * 32 - columns))
    if columns % 32:
        fields[:, columns:] = 0
    fields = fields.reshape(rows, periods, 32)
    accumulator = torch.zeros(rows, periods, bits, dtype=torch.int64, device=codes.device)
    for field in range(32):
        word, shift = divmod(field * bits, 32)
        bits_of_field = fields[:, :, field].to(torch.int64) << shift
        accumulator[:, :, word] |= bits_of_field & 0xFFFFFFFF
        if shift + bits > 32:
            accumulator[:, :, word + 1] |= bits_of_field >> 32
    # As the two's complement of the same 32 bits.
    int32 = torch.where(accumulator >= 2**31, accumulator - 2**32, accumulator).to(torch.int32)
    return int32.reshape(rows, periods * bits)[:, :words].contiguous()
