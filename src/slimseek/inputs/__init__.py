"""Raw items to named arrays: the same code at training and at serving."""
