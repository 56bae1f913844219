"""Parts that leave the model, so that what is left is smaller and dense."""
