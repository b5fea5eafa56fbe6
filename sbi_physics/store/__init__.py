"""Floor 1: files. HDF5 simulations, safetensors models, and the registry of public data sets."""
