"""Prompts on disk. Knows tensors and plain values, not models: `ptune.model` saves and loads through it."""
