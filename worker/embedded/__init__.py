"""``qe serve``: the whole service on one machine, with its own PostgreSQL and Redis."""
