"""A restricted Boltzmann machine on bars and stripes, against the entropy and against scikit-learn.

Claim: with as many hidden units and as many passes over the same rows our machine comes far closer to the entropy of
the data, ln 30 nats, than `sklearn.neural_network.BernoulliRBM`, and closer still where that is given 20 times as many.
The 30 patterns of 4 x 4 pixels whose rows or whose columns are all on or off are equally probable (MacKay 2003,
Information Theory, Inference, and Learning Algorithms, section 43); the likelihood is exact, by a sum over the 2^16
states.  The learning rate of each side is the best of three by that likelihood, on a seed of its own; the figures are
means over three other seeds.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import torch
from sklearn.neural_network import BernoulliRBM
from torch import Tensor

from benchmarks.models.answer import Answer, Side, timed
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.boltzmann import RestrictedBoltzmannMachine
from sbi_physics.train.boltzmann import BOLTZMANN_SETTINGS, train_boltzmann

__all__ = ["measure"]

SIDE, HIDDEN, COPIES, PASSES, BATCH, SEEDS = 4, 16, 50, 60, 20, 3
MORE_PASSES = 20 * PASSES
OUR_RATES, THEIR_RATES, THEIR_LOWER_RATES = (0.003, 0.01, 0.03), (0.01, 0.03, 0.1), (0.001, 0.003, 0.01)

Fit = Callable[[float, int], float]


def measure(seed: int) -> Answer:
    """Mean log-probability of the patterns under each machine."""
    patterns = _patterns()
    ways: dict[str, tuple[tuple[float, ...], Fit]] = {
        f"ours, {PASSES} passes": (OUR_RATES, lambda rate, s: _ours(patterns, rate, s)),
        f"scikit-learn, {PASSES} passes": (THEIR_RATES, lambda rate, s: _theirs(patterns, rate, s, PASSES)),
        f"scikit-learn, {MORE_PASSES:,} passes": (
            THEIR_LOWER_RATES,
            lambda rate, s: _theirs(patterns, rate, s, MORE_PASSES),
        ),
    }
    sides, choices = [Side("exact: minus the entropy", [-math.log(len(patterns))])], []
    for name, (rates, fit) in ways.items():
        best = max(rates, key=lambda rate, fit=fit: fit(rate, derive(seed, "choice")))
        found, seconds = timed(lambda fit=fit, best=best: [fit(best, derive(seed, i)) for i in range(SEEDS)])
        sides.append(Side(name, [mean(found)], round(seconds / SEEDS, 1)))
        choices.append(f"{best:g} ({name})")
    return Answer(
        f"restricted Boltzmann machine of {HIDDEN} hidden units: bars and stripes of {SIDE} x {SIDE} pixels",
        [f"log-probability of a pattern [nats], mean over {SEEDS} fits"],
        sides,
        f"Learning rates, the best of three on another seed: {', '.join(choices)}.",
    )


def _patterns() -> Tensor:
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=SIDE)))
    rows = bits.unsqueeze(2).expand(-1, SIDE, SIDE)
    return torch.cat([rows, rows.transpose(1, 2)]).flatten(1).unique(dim=0)


@torch.no_grad()
def _likelihood(machine: RestrictedBoltzmannMachine, patterns: Tensor) -> float:
    machine = machine.double()
    return -float(machine.free_energy(patterns.double()).mean()) - machine.log_partition().value


def _ours(patterns: Tensor, rate: float, seed: int) -> float:
    with seeded(seed):
        machine = RestrictedBoltzmannMachine(SIDE**2, HIDDEN)
    spins = 2 * patterns - 1
    config = replace(BOLTZMANN_SETTINGS, learning_rate=rate, epochs=PASSES, batch_size=BATCH)
    train_boltzmann(machine, spins.repeat(COPIES, 1), chains=256, config=config, seed=seed, progress=False)
    return _likelihood(machine, spins)


def _theirs(patterns: Tensor, rate: float, seed: int, passes: int) -> float:
    options = {"learning_rate": rate, "n_iter": passes, "batch_size": BATCH, "random_state": seed % 2**32}
    found = BernoulliRBM(HIDDEN, **options).fit(patterns.repeat(COPIES, 1).numpy())
    machine = RestrictedBoltzmannMachine(SIDE**2, HIDDEN, units="binary").double()
    with torch.no_grad():
        machine.weight.copy_(torch.as_tensor(found.components_.T))
        machine.visible_bias.copy_(torch.as_tensor(found.intercept_visible_))
        machine.hidden_bias.copy_(torch.as_tensor(found.intercept_hidden_))
    return _likelihood(machine, patterns)
