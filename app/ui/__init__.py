"""The dashboard: pages for people over the services of the nouns.

Imports every noun, and calls their services, not their routes. Only ``main`` imports it.
"""
