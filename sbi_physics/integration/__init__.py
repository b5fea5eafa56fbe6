"""Floor 4: integrals over the unit hypercube, and the maps that turn cross sections and widths into them."""
