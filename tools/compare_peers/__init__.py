"""Feather-edge beside what a user would pick instead, on this machine; see ``compare.py``."""
