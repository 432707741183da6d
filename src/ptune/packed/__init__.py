"""Rows in one sequence without padding: layout, attention, LM head, loss."""
