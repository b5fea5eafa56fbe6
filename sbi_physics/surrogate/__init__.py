"""Floor 4: fit a generator to the outputs of a simulator, say how far it is from it, and sample it."""
