"""The loops that keep the service tidy: lost leases, deletions, waiting reasons, storage compared with the ledger.

Safe to run in any number of copies and to kill at any time. May import ``worker.ledger``, ``worker.pushes`` and
``worker.webhooks``.
"""
