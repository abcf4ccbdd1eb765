"""What a run is asked for, as data: schemes, methods and presets, ranks, the frozen specification.

Needs pydantic alone. The library, the planner, the API and the client import it, so that each table stands once.
"""
