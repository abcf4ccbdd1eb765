"""Models as files: those below the model root, and those on the hub that a plan reads.

Imports ``parsing`` and what lies below it.
"""
