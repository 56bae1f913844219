"""A smaller model that learns from a greater one."""
