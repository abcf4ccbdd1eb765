"""The machine a worker runs on: its devices, memory, health and presence."""
