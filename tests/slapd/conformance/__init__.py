"""One suite for the store and its twin: what passes here may be relied on by everything above the directory."""
