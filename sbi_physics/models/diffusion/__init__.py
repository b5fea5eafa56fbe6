"""Densities that carry noise to events along an ordinary differential equation, learned without solving it."""
