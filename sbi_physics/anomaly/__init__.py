"""Resonant and non-resonant anomaly searches."""
