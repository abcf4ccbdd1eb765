"""`make compose-test`: the images and compose files on a real engine."""
