"""How names in a request begin that are no names on the hub."""

from __future__ import annotations

LOCAL = "local/"
"""A model directory below the service's model root."""
UPLOADED = "ds_"
"""The id of an uploaded dataset."""
