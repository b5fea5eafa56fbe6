"""What surrogates are worth: `check` and what it catches."""
