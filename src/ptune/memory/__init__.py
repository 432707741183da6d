"""Memory: what a run takes, measured."""
