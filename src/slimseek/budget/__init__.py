"""The search over recipes: a budget in, a proven model out. Runs stages 5 to 8 many times and keeps the front."""
