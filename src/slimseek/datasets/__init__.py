"""Readers of collections, one layout a file."""
