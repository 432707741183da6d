"""What a batch is: rows of text, the prompt before each of them, and the way both take through the model."""
