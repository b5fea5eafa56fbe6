"""Normalising flows in the grammar of nflows, with transforms of our own."""
