"""A soft prompt as keys and values: per row, across calls, across micro-batches."""
