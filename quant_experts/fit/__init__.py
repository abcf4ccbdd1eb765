"""The numerics of one input group: statistics in; scales, codes, experts and router out (docs/method.md, section 4).

Pure functions of tensors. May import ``spec``, ``forward`` (for the arithmetic of a quantized layer) and the data
classes of ``report``; never ``model``, ``calibration``, ``checkpoint`` or ``walk``. The slots ``smoothing``,
``rounding`` and ``reconstruction`` never import each other.
Read in this order: ``statistics``, ``problem``, ``fit_group`` (the whole fit), the slots, ``adapter_storage``,
``group_evaluation``.
"""
