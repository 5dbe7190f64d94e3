"""Makes Diorama: the world it is drawn from, the pictures, and the three trainings."""
