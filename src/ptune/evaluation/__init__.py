"""What a prompt achieves: held-out loss, answers, and metrics over them."""
