"""Floor 4: find what does not look like the background, and say how sure that is."""
