"""The shapes that API and worker agree on: a job's spec, its events, its errors, the names of its files."""
