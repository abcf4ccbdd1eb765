"""``scheme: "auto"``: try a few configurations on a few rows, and choose the best one that meets the target.

May import ``sensitivity``, ``evaluation`` and ``walk``. Read in this order: ``grid`` (the points and their sizes),
``choice`` (which points to try), ``search`` (trying them).
"""
