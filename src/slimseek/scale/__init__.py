"""More than one machine: what a Ray cluster does in the place of this process, with the same results."""
