"""The forward of a quantized model and its processor, in two files that every checkpoint carries a copy of.

Each needs torch and transformers alone and imports nothing of this project.
"""
