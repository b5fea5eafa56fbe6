"""Floor 1: pure functions of tensors and callables that say how far to trust a result."""
