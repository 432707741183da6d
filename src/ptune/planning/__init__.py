"""Memory and time of a run before anything is loaded."""
