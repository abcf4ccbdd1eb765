"""From rows of text, images and audio to the inputs that each stack of blocks is called with, on disk.

May import the model; knows nothing of how a group is fitted.
"""
