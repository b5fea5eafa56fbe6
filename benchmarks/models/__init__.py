"""Benchmarks of networks for which there is an exact answer."""
