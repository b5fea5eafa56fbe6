"""Tempered sequential Monte Carlo: to come."""

from typing import Any

from sbi_physics.core.samples import Samples

__all__ = ["tempered_smc"]


def tempered_smc(*arguments: Any, **options: Any) -> Samples:
    """To come."""
    raise NotImplementedError
