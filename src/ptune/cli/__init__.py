"""The command line: one file a sub-command, errors become one line and an exit code."""
