"""HTML strings, with their CSS and JavaScript."""
