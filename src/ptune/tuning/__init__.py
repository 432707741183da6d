"""A search for the encoder, length, start and learning rate that suit a model and data."""
