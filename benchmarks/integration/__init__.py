"""Integrals and unweighted events against VEGAS and madnis."""
