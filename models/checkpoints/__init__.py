"""From weights files to networks."""
