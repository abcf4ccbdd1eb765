"""One attempt of a job, from the claim to its end; read ``run_attempt`` first.

Nothing that an attempt writes after it has lost its lease takes effect. May import ledger, machine and runner.
"""
