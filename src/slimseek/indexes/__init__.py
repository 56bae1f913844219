"""Nearest-neighbour indexes, one a file."""
