"""What a run is asked for, as data: schemes, methods and presets, ranks, the frozen specification.

Needs pydantic alone and imports nothing of the project. The library, the planner, the API and the client import it, so
that each table stands once.
Read in this order: ``schemes``, ``slots``, ``methods`` (presets and defaults), ``choices`` (mixed precision, target,
limits), ``ranks``, ``specification``. ``limits``: of the rows that a run reads.
``prefixes``: of names that are not on the hub.
"""
