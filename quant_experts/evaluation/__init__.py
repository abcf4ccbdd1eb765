"""What quantization does to held-out rows: next-token figures, images, replies, and the user's limits.

May import ``walk`` and everything below it; never ``sensitivity`` or ``search``.
Read in this order: ``after_walk`` (all measurements of a run), ``next_token`` (KL, agreement, perplexity),
``image_sensitivity``, ``calibration_quality``, ``replies``, ``acceptance``.
"""
