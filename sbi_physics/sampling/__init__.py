"""Floor 3: samplers. Given a log-density, draw from it."""
