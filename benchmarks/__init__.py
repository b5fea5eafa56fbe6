"""One script for each claim; results as JSON with the description of the machine."""
