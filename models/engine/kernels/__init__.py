"""Kernels of our own: C++ for the processor, Triton for a GPU."""
