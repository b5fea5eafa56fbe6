r"""Truncated sequential neural posterior estimation: all simulations where one observation needs them.

Simulate at the prior and train; cut the prior to the region that the learned posterior of the observation leaves,
simulate there, train on all simulations so far; and so on (TSNPE: Deistler, Goncalves and Macke 2022,
arXiv:2210.04815).  As every proposal is the prior inside a region, the loss is that of `NPE`, the posterior does not
leak out of the prior, and calibration can be checked inside the region.

The regions lie one inside the other.  Inside the last one each proposal is proportional to the prior, and so are the
pairs of all rounds together: trained on all of them, the network is right wherever the observation puts its posterior.
It is not for other observations, which is why the result is tied to this one.

The last round is where the fit must be good.  There a likelihood is learned, too, and if simulations near the
observation say that it knows more, the network is trained on draws of the posterior that it gives the observation.
"""

import time
from dataclasses import replace
from typing import Any, Literal

import torch

from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import UsageError
from sbi_physics.core.protocols import Simulator
from sbi_physics.core.random import check_seed, derive
from sbi_physics.posterior.direct import DirectPosterior
from sbi_physics.posterior.npe import NPE
from sbi_physics.posterior.observation import read_observation
from sbi_physics.posterior.truncated import TruncatedPrior
from sbi_physics.simulation.resolve import resolve_simulator
from sbi_physics.simulation.run import simulate
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.pairs import Failed, training_pairs

__all__ = ["TSNPE"]


class TSNPE:
    """Truncated sequential neural posterior estimation.

    Args:
        prior: `Parameters`, or any torch distribution over P numbers.
        model: as for `NPE`; so for the other arguments.
        embedding: what summarises observations, as for `NPE`.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        ensemble: flows whose mixture is the posterior.
        config: settings of the training loop, in every round.
        engine: how flows are run.
        augment: whether to learn a likelihood, too, in the last round; ``"auto"`` as for `NPE`.
        **options: of the named flow.
    """

    def __init__(
        self,
        prior: Any,
        model: Any = "nsf",
        embedding: Any = None,
        device: str | torch.device = "auto",
        *,
        ensemble: int = 1,
        config: TrainConfig | None = None,
        engine: str = "auto",
        augment: bool | Literal["auto"] = "auto",
        **options: Any,
    ) -> None:
        settings: dict[str, Any] = {"ensemble": ensemble, "config": config, "engine": engine, **options}
        self.estimator, self.last = (
            NPE(prior, model, embedding, device, augment=augmented, **settings) for augmented in (False, augment)
        )
        self.parameters = self.estimator.parameters

    def fit(
        self,
        simulator: Simulator | str,
        x_obs: Any,
        *,
        simulations: int = 10_000,
        rounds: int = 5,
        epsilon: float = 1e-4,
        failed: Failed = "refuse",
        seed: int = 0,
        workers: int | None = None,
        timeout: float | None = None,
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> DirectPosterior:
        """Simulate and train in rounds.

        Args:
            simulator: as for `sp.simulate`.
            x_obs: the one observation, ``x_shape`` or ``(1, *x_shape)``.
            simulations: the budget, all rounds together, shared equally.
            rounds: how many.
            epsilon: share of the learned posterior that each cut gives up.
            failed: what to do where simulations fail, as for `NPE.fit`.
            seed: of everything.
            workers: processes that simulate.
            timeout: seconds that one simulation may take.
            max_seconds: wall-clock budget; no further round begins after it.
            progress: whether to show progress bars.

        Returns:
            A posterior for this observation alone; its provenance tells the rounds.

        Raises:
            UsageError, ShapeError, NonFiniteError: the arguments do not fit.
            SimulationError: simulations failed and `failed` is ``"refuse"``, or their shape is not that of x_obs.
            ConvergenceError: posteriors of successive rounds disagree.
        """
        budget, count = positive_integer(simulations, "simulations"), positive_integer(rounds, "rounds")
        if budget < 10 * count:
            raise UsageError(f"simulations: expected at least 10 for each of {count} rounds, got {budget}")
        if not 0 < epsilon < 1:
            raise UsageError(f"epsilon: expected a number between 0 and 1, got {epsilon!r}")
        model, began = resolve_simulator(simulator), time.monotonic()
        check_seed(seed)
        options: dict[str, Any] = {"workers": workers, "timeout": timeout, "progress": progress}
        prior, told, past, failures = TruncatedPrior(self.parameters), [], None, 0
        sizes = [budget // count + (i < budget % count) for i in range(count)]
        for i, size in enumerate(sizes):
            points, share = prior.sample(size, seed=derive(seed, "propose", i))
            run = simulate(model, size, theta=points, seed=derive(seed, "simulate", i), **options)
            new = training_pairs(self.parameters, run, failed=failed)
            if past is None:  # only now is the shape of an observation known
                observed = read_observation(x_obs, tuple(new.x.shape[1:]), iid=True, device=torch.device("cpu")).x
                prior = replace(prior, x_obs=observed)
            failures += new.failed
            past = (
                (new.theta, new.x) if past is None else (torch.cat([past[0], new.theta]), torch.cat([past[1], new.x]))
            )
            last = i + 1 == count or (max_seconds is not None and time.monotonic() - began > max_seconds)
            # Draws of a likelihood would not know that simulations can fail.
            estimator = self.last if last and not failures else self.estimator
            posterior = estimator._fit(
                *past,
                x_obs=prior.x_obs if last else None,
                failed="refuse",
                seed=derive(seed, "train", i),
                progress=progress,
            )
            told.append({"simulations": size, "share_of_prior": share, "seconds": time.monotonic() - began})
            if last or (max_seconds is not None and time.monotonic() - began > max_seconds):
                break
            # One warning of an observation far from the simulations is enough: that of the first round.
            cutter = posterior if i == 0 else replace(posterior, simulated=None)
            prior = prior.cut(cutter, epsilon, derive(seed, "cut", i))
        # A score over many observations says nothing about the one.
        kept = {key: value for key, value in posterior.provenance.items() if key != "validation_log_prob"}
        provenance = {**kept, "rounds": told}
        return replace(posterior, provenance=provenance, x_obs=prior.x_obs)
