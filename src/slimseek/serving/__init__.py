"""What the service is made of: batches, limits, metrics, answers, and the change from one model to the next."""
