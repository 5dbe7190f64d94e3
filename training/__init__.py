"""Trains Diorama from nothing: its procedural world, rendered pictures and networks."""
