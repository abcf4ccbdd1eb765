"""Where bits and errors matter most: gradients, changes of the loss, and which groups keep more bits.

Measured over the whole model before the walk.
"""
