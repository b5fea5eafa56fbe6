"""Floor 6: the command line. One file per verb; each parses, calls the front door, prints."""
