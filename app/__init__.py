"""The API: FastAPI routes, dashboard and Hub protocol.

Imports ``core``, and of the library ``spec`` and ``planning``; neither torch nor ``worker``. Inside, imports go one
way: ``db`` → ``web`` → ``access`` → ``deps`` → the nouns → ``ui`` → ``main`` (a contract in pyproject.toml has the
order). Each noun has the same files: ``router`` (HTTP only), ``schemas`` (what clients see), ``service`` (what happens)
and ``queries`` (what is read).
"""
