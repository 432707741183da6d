"""`ptune export --to model`: an ordinary model folder with soft prompts as special tokens of its vocabulary."""
