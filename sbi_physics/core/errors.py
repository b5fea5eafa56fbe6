"""The exceptions that the package raises, one for each kind of thing that can go wrong.

Every message says what was expected and what came. All derive from `SBIPhysicsError`, so that
``except sp.SBIPhysicsError`` catches what the package found wrong and lets programming errors through.
"""

__all__ = [
    "BudgetError",
    "ConvergenceError",
    "NonFiniteError",
    "SBIPhysicsError",
    "ShapeError",
    "SimulationError",
    "StoreError",
    "SupportError",
    "TrainingError",
    "UsageError",
]


class SBIPhysicsError(Exception):
    """The root of all errors that the package raises on purpose."""


class UsageError(SBIPhysicsError, ValueError):
    """An argument has a value that the function does not take."""


class ShapeError(SBIPhysicsError, ValueError):
    """An array has the wrong shape."""


class NonFiniteError(SBIPhysicsError, ValueError):
    """An array that must be finite holds NaN or infinity."""


class SupportError(SBIPhysicsError, ValueError):
    """A parameter lies outside the support of its prior, or a prior has a support that cannot be mapped."""


class BudgetError(SBIPhysicsError, RuntimeError):
    """A budget of calls or seconds ended before there was a result."""


class StoreError(SBIPhysicsError, OSError):
    """A file is missing, damaged, of another version, or does not hold what was asked of it."""


class SimulationError(SBIPhysicsError, RuntimeError):
    """A simulator broke its contract, or no simulation of a run succeeded."""


class TrainingError(SBIPhysicsError, RuntimeError):
    """Training stopped because the loss is not finite."""


class ConvergenceError(SBIPhysicsError, RuntimeError):
    """A result would not be trustworthy: weights too heavy-tailed, or chains too short."""
