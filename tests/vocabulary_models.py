"""What the models and the prompts of tests of `ptune export --to model` are like."""

from __future__ import annotations

from typing import Any

TUTORIAL, OWN = "tutorial", "Say it: {instruction}\n{output}"
INSIDE = "{prompt:2}Ask {instruction}{prompt:3:mid} now{prompt:1}: {output}"
CHAT = (
    "{% for message in messages %}{{ '<bos>' + message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "  \n{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}\n"
)
MODELS: dict[str, dict[str, Any]] = {
    "bloom": {},
    "gpt2": {},
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True, "vocab_size": 133},
    "gemma3": {},
    "mistral": {"tie_word_embeddings": False, "sliding_window": 24},
}
"""BLOOM, GPT-2 and Gemma 3 tie their embeddings by themselves. Qwen2's table has rows beyond the vocabulary."""
