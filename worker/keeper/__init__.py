"""The loops that keep the service tidy: lost leases, deletions, waiting reasons, storage held against the ledger."""
