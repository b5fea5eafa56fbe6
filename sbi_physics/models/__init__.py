"""Floor 2: conditional models. Each satisfies `Generator`, and `Density` where it can evaluate."""
