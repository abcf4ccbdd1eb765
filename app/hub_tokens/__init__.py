"""A tenant's token for the Hugging Face Hub, stored sealed.

Imports ``audit`` and what lies below it.
"""
