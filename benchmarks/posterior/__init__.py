"""Claims about posteriors."""
