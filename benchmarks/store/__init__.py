"""Files of simulations: what compression costs and saves, and what it costs to train from the disk."""
