"""Collects every trade of the markets you name, and proves that none is missing."""

__version__ = "0.1.0"
