"""Packages for the web: files of the page and of npm, the index in them, and Node, which runs the same code."""
