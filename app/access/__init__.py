"""Who calls and what they may do: keys, scopes, quotas.

Imports ``web`` and ``db``, and knows no noun.
"""
