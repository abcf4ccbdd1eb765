"""What workers read and write in the database: claims, attempts, finished blocks, registered workers.

Every write of an attempt is fenced. The statements that change a job's status are in ``core.ledger.transitions``.
May import ``core``.
"""
