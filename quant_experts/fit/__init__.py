"""The numerics of one input group: statistics in, scales, codes, experts and router out.

Pure functions of tensors. Knows no model, no file and no checkpoint. The slots (``smoothing``, ``rounding``,
``reconstruction``) never import each other.
"""
