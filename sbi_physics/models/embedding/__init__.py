"""Encoders: networks that turn one observation, of any structure, into a vector of features."""
