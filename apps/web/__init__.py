"""The site that shows the apps."""
