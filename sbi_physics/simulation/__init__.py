"""Floor 2: run a simulator many times."""
