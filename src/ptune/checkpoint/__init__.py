"""Prompts on disk. This layer knows tensors and plain values, not models, so it stands below `ptune.model`, which saves and
loads through it."""
