"""The model to quantize: its files, its structure without weights, its input groups, one block in memory at a time.

May import ``planning``, ``progress`` and ``errors``; nothing that calibrates or fits.
Read in this order: ``tensor_file`` and ``weights`` (files), ``blueprint`` (the model without weights), ``discovery``
and ``manifest`` (its stacks), ``groups`` (its input groups), ``block_runner`` (one block runs), ``run_context``.
"""
