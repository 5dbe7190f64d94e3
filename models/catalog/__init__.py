"""What models there are, and where their files are. Knows no torch."""
