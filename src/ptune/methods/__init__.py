"""Ways to adapt a frozen model, side by side: P-tuning's kinds, and what people compare them with."""
