"""The checkpoint format: lay out a fitted group, write a model, read it back, verify it.

May import ``fit`` (for the fitted group), ``model``, ``calibration`` (for the processor) and ``report``; never
``walk``.
Read in this order: ``layout`` (tensors and configuration of a group), ``pack`` (integers in words), ``shards``,
``configuration``, ``card``, ``write`` (the whole directory), ``read``, ``verify``. ``fresh_process`` runs as a script.
"""
