"""Floor 0: protocols, parameters and units, samples, checks, errors, random streams."""
