"""Native code for the outputs of surrogates."""
