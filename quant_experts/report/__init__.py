"""The quality report: ``data`` holds what was measured; ``page`` and ``charts`` show it to people.

``data`` imports nothing of the project, so that every room can produce it. The rest may import
``charts`` and ``planning`` (for sizes in words). Read in this order: ``data``, ``page``, then ``charts``.
"""
