"""The one door to the directory: a store with claims, its OpenLDAP and in-memory forms, and a watch that wakes."""
