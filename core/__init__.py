"""What API and worker share: settings, logs, storage, tracing, the contract of jobs, and the ledger.

Promises that both sides see one definition of each. Imports ``quant_experts.spec`` and nothing else of this project.
Inside, imports go down: contract is lowest, then settings, logs, storage and ledger, then what reads settings.
"""
