"""Diorama's procedural world: scenes, their pictures and the exact truth about them."""
