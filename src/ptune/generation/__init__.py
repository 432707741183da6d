"""`generate` of transformers behind a prompt."""
