"""A chat program for the terminal that sees.

Importing the package costs nothing: every floor is imported where it is used.
"""

__version__ = "0.1.0"
