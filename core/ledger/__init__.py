"""The database of jobs: its tables, the states of a job and the messages that leave with a transaction."""
