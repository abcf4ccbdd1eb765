"""What quantization does to held-out rows and to the user's own task: figures, images, replies, scores, limits.

May import ``walk`` and everything below it; never ``sensitivity`` or ``search``.
Read in this order: ``after_walk`` (all measurements of a run), ``next_token`` (KL, agreement, perplexity),
``image_sensitivity``, ``calibration_quality``, ``replies``, ``acceptance``. The user's own task: ``task``,
``task_rows``, ``generation``, ``scores``, ``multiple_choice``.
"""
