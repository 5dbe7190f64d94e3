"""What is shown, as HTML text, with its style and its script."""
