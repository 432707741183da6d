"""The frozen model with its soft prompts: loading, prefix, concatenation, loss, generation, and the wrapper."""
