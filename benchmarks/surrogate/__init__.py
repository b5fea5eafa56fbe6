"""Surrogates against the simulators they stand in for."""
