"""Native code: what PyTorch does in many passes over memory, as C functions compiled for the processor at hand."""
