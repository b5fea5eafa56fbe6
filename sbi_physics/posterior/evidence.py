r"""Compare models by their evidences.

The evidence of model m is $Z_m = \int p(x|\theta, m)\,p(\theta|m)\,d\theta$, the Bayes factor of two models
$B_{ab} = Z_a/Z_b$, and with prior probabilities $\pi_m$

$$ p(m|x) = \frac{\pi_m Z_m}{\sum_k \pi_k Z_k}. $$

The words are those of Trotta 2008 (arXiv:0803.4089, table 1) for odds: below 3 : 1 ($\ln B$ = 1.0) inconclusive, then
weak, moderate from 12 : 1 (2.5) and strong from 150 : 1 (5.0).  An evidence, unlike a posterior, changes with the width
of the prior even where the data decide everything: the priors must mean what they say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.errors import NonFiniteError, UsageError
from sbi_physics.core.random import derive, seeded
from sbi_physics.core.samples import Samples

__all__ = ["EvidenceComparison", "compare_evidences", "model_prior", "strength"]

_DRAWS = 20_000
# Differences of less than so many of their errors are not told from nothing.
_RESOLVED = 2.0


@dataclass(frozen=True)
class EvidenceComparison:
    """Evidences of M models of the same data.

    Attributes:
        names: of the models.
        log_evidence: in nats, ``(M,)``.
        log_evidence_error: standard deviations, ``(M,)``.
        prior: probabilities of the models before the data, ``(M,)``.
        probability: after the data, ``(M,)``.
        probability_error: what the errors of the evidences make of that, standard deviation ``(M,)``.
    """

    names: tuple[str, ...]
    log_evidence: Tensor
    log_evidence_error: Tensor
    prior: Tensor
    probability: Tensor
    probability_error: Tensor

    def log_bayes_factor(self, a: str, b: str) -> tuple[float, float]:
        """Ln B of model a over model b in nats, and its standard deviation."""
        i, j = (_index(self.names, name) for name in (a, b))
        if i == j:
            return 0.0, 0.0
        error = float(torch.hypot(self.log_evidence_error[i], self.log_evidence_error[j]))
        return float(self.log_evidence[i] - self.log_evidence[j]), error

    @property
    def verdict(self) -> str:
        """One plain sentence: which model is favoured over the next best, and by how much."""
        best, second = (self.names[i] for i in self.log_evidence.argsort(descending=True)[:2].tolist())
        value, error = self.log_bayes_factor(best, second)
        words = f"ln B = {value:.1f} +- {error:.1f} nats against {second}, Bayes factor {odds(value)}"
        if value < _RESOLVED * error:
            return f"not resolved: {best} is ahead, {words}; compute the evidences with smaller errors"
        share = float(self.probability[self.names.index(best)])
        return f"{strength(value)}: {best} is favoured, {words}; probability {share:.3g} with the given prior"


def compare_evidences(
    evidences: Mapping[str, Samples | tuple[float, float]],
    *,
    prior: Mapping[str, float] | Sequence[float] | None = None,
    seed: int = 0,
) -> EvidenceComparison:
    """Turn log-evidences with errors into Bayes factors and probabilities of models.

    Args:
        evidences: for each model what `Posterior.correct` returned (its diagnostics hold ``log_evidence`` and
            ``log_evidence_error``), or the log-evidence in nats and its standard deviation.
        prior: probabilities of the models, by name or in their order; equal where None.  They need not sum to one.
        seed: of the draws that carry the errors over to the probabilities.

    Raises:
        UsageError: there are fewer than two models, samples that know no evidence, or a prior that is none.
        NonFiniteError: an evidence or its error is not finite.
    """
    names = tuple(evidences)
    if len(names) < 2:
        raise UsageError(f"evidences: expected at least two models, got {len(names)}")
    pairs = [_pair(name, one) for name, one in evidences.items()]
    value, error = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    weights = model_prior(prior, names)
    with seeded(derive(seed, "evidences")):
        scattered = value + error * torch.randn(_DRAWS, len(names), dtype=torch.float64)
    probability = torch.softmax(value + weights.log(), -1)
    spread = torch.softmax(scattered + weights.log(), -1)
    error_of_it = (spread - probability).square().mean(0).sqrt()
    return EvidenceComparison(names, value, error, weights, probability, error_of_it)


def model_prior(prior: Mapping[str, float] | Sequence[float] | None, names: Sequence[str]) -> Tensor:
    """Prior probabilities of models in the order of their names, summing to one: float64 ``(M,)``.

    Raises:
        UsageError: names or numbers do not fit the models.
    """
    if prior is None:
        return torch.full((len(names),), 1 / len(names), dtype=torch.float64)
    if isinstance(prior, Mapping):
        if set(prior) != set(names):
            raise UsageError(f"prior: expected probabilities of {', '.join(names)}, got {', '.join(map(str, prior))}")
        prior = [prior[name] for name in names]
    values = [float(p) for p in prior]
    if len(values) != len(names) or not all(0 < p < math.inf for p in values):
        raise UsageError(f"prior: expected {len(names)} numbers above 0, one for each model, got {values}")
    weights = torch.tensor(values, dtype=torch.float64)
    return weights / weights.sum()


def strength(log_bayes_factor: float) -> str:
    """The word for a Bayes factor on the scale of Trotta 2008 (arXiv:0803.4089)."""
    size = abs(log_bayes_factor)
    for least, word in ((5.0, "strong evidence"), (2.5, "moderate evidence"), (1.0, "weak evidence")):
        if size >= least:
            return word
    return "inconclusive"


def odds(log_bayes_factor: float) -> str:
    """A Bayes factor as odds."""
    factor = math.exp(min(abs(log_bayes_factor), 700.0))
    text = f"{factor:.0f}" if 10 <= factor < 1e5 else f"{factor:.2g}"
    return f"{text} : 1" if log_bayes_factor >= 0 else f"1 : {text}"


def _pair(name: str, one: Any) -> tuple[float, float]:
    if isinstance(one, Samples):
        known = one.diagnostics
        if "log_evidence" not in known or "log_evidence_error" not in known:
            raise UsageError(
                f"evidences: the samples of {name} know no log_evidence and log_evidence_error; take those of "
                "Posterior.correct with method='importance', or a tuple of two numbers"
            )
        one = (known["log_evidence"], known["log_evidence_error"])
    try:
        value, error = (float(number) for number in one)
    except (TypeError, ValueError) as problem:
        raise UsageError(
            f"evidences: expected for {name} samples of one observation, or a log-evidence and its error, got {one!r}"
        ) from problem
    if not (math.isfinite(value) and math.isfinite(error) and error >= 0):
        raise NonFiniteError(f"evidences: expected finite numbers and an error of at least 0, got {one} for {name}")
    return value, error


def _index(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise UsageError(f"model: expected one of {', '.join(names)}; got {name!r}")
    return list(names).index(name)
