"""What simulating costs beyond the simulator itself."""
