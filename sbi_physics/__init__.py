"""Simulation-based inference for physicists.

One conditional model, four jobs: surrogates for expensive simulators, posteriors p(theta | x), importance sampling for
phase-space integrals, and data-driven backgrounds for anomaly searches.  Importing the package imports no torch: each
name below is loaded when it is first used.
"""

import lazy_loader as _lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__all__ = [*__all__, "__version__"]
