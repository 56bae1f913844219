"""Search metrics, one a file."""
