"""Where bits and errors matter most, measured over the whole model before the walk.

May import ``walk``, ``evaluation`` and ``checkpoint.layout`` (for stored sizes).
Read in this order: ``measurements`` (what is measured, and what it decides), ``rounding_change`` (KL of each group),
``gradients`` (weights of both modalities), ``mixed_precision`` (which groups keep more bits). ``transition`` and
``last_stack`` take measurements through models with several stacks.
"""
