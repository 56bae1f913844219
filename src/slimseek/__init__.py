"""slimseek makes the neural model behind a search smaller and faster, and proves that the search still finds the same.

The verbs of the command line are functions of :mod:`slimseek.api`. Importing this package loads nothing else.
"""

__version__ = "0.1.0"
