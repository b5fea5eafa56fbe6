"""Speed and quality of the flows themselves."""
