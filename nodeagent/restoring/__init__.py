"""What a restore decides without touching anything: conflicts, what an edited XML may hold, another name."""
