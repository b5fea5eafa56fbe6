"""Benchmarks of anomaly searches."""
