"""Requests of different prompts in one running batch. Knows nothing of HTTP."""
