"""The model to quantize: its files, its structure without weights, its input groups, one block at a time in memory.

Imports errors, progress and files of its own; nothing that calibrates or fits.
"""
