"""The native engine: a flow's passes over its rows as one compiled function on the CPU."""
