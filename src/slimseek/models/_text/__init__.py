"""Text encoders: their files, what follows their blocks, and how they become narrower."""
