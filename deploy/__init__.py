"""Serving the suite otherwise than from one process."""
