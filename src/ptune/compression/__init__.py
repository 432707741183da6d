"""A long text compressed into a prompt, by what the model itself asks and answers about it."""
