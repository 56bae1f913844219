"""What trains a model: the loop, what it is fed with and judged by, and what of it lies on disk."""
