"""Accuracy on a real pretrained language model: SmolLM2-135M-Instruct, on real text.

``prepare.py`` makes the model and the text from packages, ``yardstick.py`` measures a model, ``runs.py`` quantizes and
measures one, ``tables.py`` writes the page, ``peers.py`` runs other quantizers on the same tokens.
"""
