"""Messages to webhooks: which are due, and sending them. May import ``worker.ledger``."""
