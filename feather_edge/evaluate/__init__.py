"""Judging answers: boxes for now."""
