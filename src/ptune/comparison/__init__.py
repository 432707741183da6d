"""Methods side by side on one model and data: each in a process of its own, on the same rows in the same order."""
