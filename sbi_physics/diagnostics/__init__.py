"""Floor 1: pure functions of tensors and callables that say how far to trust a result."""

from sbi_physics.diagnostics.calibration import Calibration, sbc, sbc_from_samples, sbc_ranks
from sbi_physics.diagnostics.calibration_report import CalibrationReport, calibrate
from sbi_physics.diagnostics.chains import (
    ChainReport,
    autocorrelation_time,
    bulk_effective_sample_size,
    chain_report,
    split_r_hat,
)
from sbi_physics.diagnostics.classifier import ClassifierTest, classifier_auc
from sbi_physics.diagnostics.correlations import CorrelationDifference, correlation_difference
from sbi_physics.diagnostics.coverage_fit import LocalCoverage, local_coverage
from sbi_physics.diagnostics.draws import PosteriorDraws, posterior_draws
from sbi_physics.diagnostics.ecdf import EcdfBands, ecdf_bands
from sbi_physics.diagnostics.histograms import HistogramDistance, jensen_shannon, separation_power
from sbi_physics.diagnostics.learning import LearningCurve, learning_curve
from sbi_physics.diagnostics.local_two_sample import LocalTest, lc2st
from sbi_physics.diagnostics.manifold import ManifoldShares, precision_recall_density_coverage
from sbi_physics.diagnostics.physics_distance import (
    FrechetPhysicsDistance,
    KernelPhysicsDistance,
    frechet_physics_distance,
    kernel_physics_distance,
)
from sbi_physics.diagnostics.predictive import PredictiveCheck, predictive_check
from sbi_physics.diagnostics.probabilities import Reliability, reliability
from sbi_physics.diagnostics.random_points import RandomPointCoverage, tarp, tarp_from_samples
from sbi_physics.diagnostics.reach import Reach, misspecification
from sbi_physics.diagnostics.regions import Coverage, coverage, expected_coverage, highest_density_coverage
from sbi_physics.diagnostics.response import ResponseComparison, response_and_resolution
from sbi_physics.diagnostics.two_sample import c2st
from sbi_physics.diagnostics.weights import effective_sample_size, importance_efficiency, pareto_k, pareto_smooth

__all__ = [
    "Calibration",
    "CalibrationReport",
    "ChainReport",
    "ClassifierTest",
    "CorrelationDifference",
    "Coverage",
    "EcdfBands",
    "FrechetPhysicsDistance",
    "HistogramDistance",
    "KernelPhysicsDistance",
    "LearningCurve",
    "LocalCoverage",
    "LocalTest",
    "ManifoldShares",
    "PosteriorDraws",
    "PredictiveCheck",
    "RandomPointCoverage",
    "Reach",
    "Reliability",
    "ResponseComparison",
    "autocorrelation_time",
    "bulk_effective_sample_size",
    "c2st",
    "calibrate",
    "chain_report",
    "classifier_auc",
    "correlation_difference",
    "coverage",
    "ecdf_bands",
    "effective_sample_size",
    "expected_coverage",
    "frechet_physics_distance",
    "highest_density_coverage",
    "importance_efficiency",
    "jensen_shannon",
    "kernel_physics_distance",
    "lc2st",
    "learning_curve",
    "local_coverage",
    "misspecification",
    "pareto_k",
    "pareto_smooth",
    "posterior_draws",
    "precision_recall_density_coverage",
    "predictive_check",
    "reliability",
    "response_and_resolution",
    "sbc",
    "sbc_from_samples",
    "sbc_ranks",
    "separation_power",
    "split_r_hat",
    "tarp",
    "tarp_from_samples",
]
