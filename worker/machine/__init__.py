"""The machine a worker runs on: its devices, memory, health, and copies of the hub's models.

May import ``worker.ledger`` and below.
"""
