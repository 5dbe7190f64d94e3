"""Measures the suite: how well the control is kept, and how fast it is."""
