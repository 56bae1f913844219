"""What trainings lower: a network's output and what it should have given, to the loss of each item."""
