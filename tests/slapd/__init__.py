"""Tests on a real slapd."""
