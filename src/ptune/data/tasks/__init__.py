"""Rows of tasks beside a causal model's answers: classes, tags, spans, texts for texts, words in gaps."""
