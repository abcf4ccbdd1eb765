"""The confined process that quantizes, the only one with torch, and the lines it speaks with its supervisor."""
