"""Comparing: criteria on questions with known answers, backends graph by graph."""
