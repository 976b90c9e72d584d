"""The rows of the table, one module each: `measure(session)` gives one figure or more."""
