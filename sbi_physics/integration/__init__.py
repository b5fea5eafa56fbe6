"""Integrals of functions on the unit hypercube, phase space, and unweighted events."""
