"""Packages for ExecuTorch: the network in PyTorch that is exported, its integers, and the program."""
