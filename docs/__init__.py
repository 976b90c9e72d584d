"""The documentation; what can be derived from the program is written by `generate`."""
