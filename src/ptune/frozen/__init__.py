"""The frozen model as it is: its parts, what it can do, what names it, products with its weights."""
