"""Untrusted files are parsed in child processes that may do nothing else: rows, images, audio, headers, tokenizers.

``parse`` runs an operation of ``app.parsing.operations`` in a process forked from a zygote with the libraries loaded.
The child has no network, no other files and no programs, and little memory and time. When it dies, only its request
fails. Imports ``web.threads`` and ``core``; children import the planner too.
"""

from app.parsing.children import Died, parse, warm_up

__all__ = ["Died", "parse", "warm_up"]
