"""Floor 1: pure functions of tensors and callables that say how far to trust a result."""

from sbi_physics.diagnostics.calibration import Calibration, sbc, sbc_from_samples, sbc_ranks
from sbi_physics.diagnostics.chains import (
    ChainReport,
    autocorrelation_time,
    bulk_effective_sample_size,
    chain_report,
    split_r_hat,
)
from sbi_physics.diagnostics.draws import PosteriorDraws, posterior_draws
from sbi_physics.diagnostics.regions import Coverage, coverage, expected_coverage, highest_density_coverage
from sbi_physics.diagnostics.two_sample import c2st
from sbi_physics.diagnostics.weights import effective_sample_size, importance_efficiency, pareto_k, pareto_smooth

__all__ = [
    "Calibration",
    "ChainReport",
    "Coverage",
    "autocorrelation_time",
    "bulk_effective_sample_size",
    "c2st",
    "chain_report",
    "coverage",
    "effective_sample_size",
    "expected_coverage",
    "highest_density_coverage",
    "importance_efficiency",
    "pareto_k",
    "pareto_smooth",
    "sbc",
    "sbc_from_samples",
    "sbc_ranks",
    "split_r_hat",
]
