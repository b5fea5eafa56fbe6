"""Floor 4: from simulations to p(theta | x)."""
