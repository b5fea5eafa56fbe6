"""Floor 5: every picture and page. Matplotlib and corner are imported here only."""
