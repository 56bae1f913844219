"""Packages for Paddle Lite: a program of Paddle's operators, and the second interpreter that runs it."""
