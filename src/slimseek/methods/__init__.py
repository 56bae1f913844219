"""Compression methods, one a file, in the families of the field."""
