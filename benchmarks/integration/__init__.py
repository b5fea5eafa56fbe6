"""Integrals, unweighted events and lattices against VEGAS, madnis and Hamiltonian Monte Carlo."""
