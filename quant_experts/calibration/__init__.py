"""From calibration rows (text, images, audio) to the arguments that each stack of blocks receives, on disk.

May import ``model`` and ``planning``; never ``fit``, ``walk`` or ``checkpoint``.
Read in this order: ``rows`` (one checked row), ``samples`` (which rows a run uses), ``collate`` and ``speech`` (a row
becomes model inputs), ``capture`` (the model runs up to its first block), ``captured_inputs`` (the files).
"""
