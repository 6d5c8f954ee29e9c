"""emotui: where in a language model an emotion is, what wrote it, what removing it does."""

__version__ = "0.1.0"
