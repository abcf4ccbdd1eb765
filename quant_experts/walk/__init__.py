"""Block by block through the model: observe in full precision, fit, run quantized, store; resume where a run stopped.

Holds one block in memory. May import ``checkpoint.layout``, ``calibration``, ``fit`` and ``model``; never
``evaluation``, ``sensitivity``, ``search`` or ``run``.
Read in this order: ``blocks`` (the walk), ``block_pass`` (rows through one block), ``observe`` and ``fit_in_block``,
``baseline``, ``stack_transition`` (from one stack to the next), ``resume_files`` and ``file_lifetimes`` (the files).
"""
