"""The API: FastAPI, dashboard and hub protocol. Imports ``core`` and the planner; neither torch nor the worker."""
