"""What strangers wrote is parsed in children that may do nothing else: rows, images, audio, headers, tokenizers.

``parse`` runs an operation of ``app.parsing.operations`` in a process of its own, forked from one that has the
libraries loaded: without network, files, or programs, with little memory and little time. A child that dies takes its
request with it and nothing else.
"""

from app.parsing.children import Died, parse, warm_up

__all__ = ["Died", "parse", "warm_up"]
