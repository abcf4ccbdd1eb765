"""One attempt of a job, from the claim to its end: fetch, start the runner, store what it makes, keep the lease."""
