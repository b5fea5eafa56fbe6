"""Benchmarks of integration."""
