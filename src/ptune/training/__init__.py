"""Training a prompt encoder: the trainer, its progress, and the whole run from files to prompt folder."""
