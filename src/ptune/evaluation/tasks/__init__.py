"""What a prompt for a task achieves: its rows, metrics and columns; reports are those of every evaluation."""
