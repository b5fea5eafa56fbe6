"""Claims about surrogates."""
