"""One run, from a model directory and calibration rows to a verified checkpoint: ``quantize`` is the library's entry.

May import every other room of the library. Read ``quantize`` first: its nine phases name everything else.
``checks`` refuses and warns early, ``fingerprints`` tells runs apart, ``time_left`` forecasts, ``written_size`` counts.
"""
