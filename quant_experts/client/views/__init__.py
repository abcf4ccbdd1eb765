"""What the service answers, as typed data. ``tests/app/test_client_contract.py`` compares it with ``openapi.json``.

A field that this version does not know is kept (``model_extra``), and words that may grow in number within ``v1``
(event types, phases, failure codes) are plain strings: a newer service does not break an older client.
"""
