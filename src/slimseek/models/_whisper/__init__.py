"""Whisper: where it comes from, its files, its network, and the graphs that packages hold."""
