"""Spline coupling flows as one Triton kernel for all layers."""
