"""Bugs that are planted on purpose, each with the tests that have to turn red: proof that the tests can fail."""
