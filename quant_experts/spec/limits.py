"""What a run reads of its calibration rows at most. The service may be told to accept less, never more."""

from __future__ import annotations

MOST_ROWS = 10_000
"""The seeded choice of samples draws from the first so many rows; the rest of a larger file is not read."""
MOST_MEDIA_BYTES = 64 << 20
"""Of one encoded image or audio file."""
MOST_PIXELS = 50_000_000
"""Of one image, which then takes 150 MB decoded."""
MOST_FRAMES = 768
"""Of one video; no processor of transformers takes more."""
