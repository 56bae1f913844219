"""Fewer parts that do the same."""
