"""The commands of ``qe``: one module each, which offers its click command as ``command``."""
