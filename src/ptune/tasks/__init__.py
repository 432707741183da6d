"""Frozen models for other tasks than causal language modelling, behind prompts: their parts, heads, ways and losses."""
