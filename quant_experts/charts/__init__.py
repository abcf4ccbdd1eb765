"""The parts of a drawing that the quality report and the dashboard share: axes, the error by block, size against KL.

Coordinates alone, without a chart library: templates make an SVG of them. May import ``planning``.
"""
