"""The parts of the ``qe`` reconstruction: which channels matter, the experts that correct them, and the router."""
