"""Training a prompt encoder: the trainer, what it reports while it runs, and the whole run from files to prompt folder."""
