"""Decides what is backed up and moves the leaves from mode to mode; knows the directory only."""
