"""Rows padded to one length: behind keys and values, or with the prompt concatenated; their loss."""
