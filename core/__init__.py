"""What API and worker share: settings, logs, storage, tracing, the contract of jobs, and the ledger.

Imports ``quant_experts.spec`` and nothing else of this project.
"""
