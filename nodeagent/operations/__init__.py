"""What the agent does to a machine: each operation a survey that touches nothing, then a pure plan of steps."""
