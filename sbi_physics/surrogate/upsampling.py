r"""`Upsampler`: stars in position and velocity from the star particles of a simulated galaxy.

A star particle stands for thousands of stars.  The usual way to spread them puts a Gaussian of the particle's smoothing
lengths around it, which widens whatever is narrow.  Here the density of all particles in phase space is learned
instead (GalaxyFlow: Lim et al. 2022, arXiv:2211.11765), as a conditional flow for what is smooth and local Gaussians
for streams and satellites,

$$ q(w \,|\, c) = \pi_0\, p(w \,|\, c) + \sum_k \pi_k\, \mathcal{N}(w; m_k, C_k), $$

with w = (x, v) and conditions c such as age and metallicity (`SmoothGalaxy`, `find_substructure`).  A star is of the
part of which its particle is, drawn by the particle's membership r: of a Gaussian, or of the flow given the particle's
own conditions.  So it keeps the conditions of its particle, and all stars together have the density q.

    upsampler = Upsampler().fit(phase_space, smoothing, np.column_stack([ages, metallicities]), seed=0)
    stars = upsampler.sample(50, seed=1)
    stars.phase_space, ages[stars.parents]
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_physics.core.checks import as_tensor, batch_of, finite, positive_integer, resolve_device, same_length
from sbi_physics.core.errors import NonFiniteError, ShapeError, UsageError
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.models.expectation_maximisation import fit_mixture
from sbi_physics.models.flows.engines import check_engine
from sbi_physics.surrogate.galactic_coordinates import GalacticCoordinates
from sbi_physics.surrogate.smooth_galaxy import SmoothGalaxy
from sbi_physics.surrogate.substructure import Substructure, find_substructure

__all__ = ["UpsampledStars", "Upsampler"]

_FEWEST = 200
# Of the mixture that stands in for the smooth galaxy while substructure is looked for.
_SKETCH_COMPONENTS, _PARTICLES_PER_COMPONENT = 16, 200
_SKETCH: dict[str, Any] = {"iterations": 150, "tolerance": 2e-5}
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class UpsampledStars:
    """Stars, those of the first particle first.

    Attributes:
        phase_space: positions and velocities, float64 ``(m, 6)``, in the units of the particles.
        parents: the particle that each comes from, int64 ``(m,)``.
        structures: 0 for a star of the smooth galaxy, k for one of the k-th local Gaussian, int64 ``(m,)``.
    """

    phase_space: Tensor
    parents: Tensor
    structures: Tensor

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def positions(self) -> Tensor:
        """``(m, 3)``."""
        return self.phase_space[:, :3]

    @property
    def velocities(self) -> Tensor:
        """``(m, 3)``."""
        return self.phase_space[:, 3:]


class Upsampler:
    """p(x, v) of star particles given their conditions, learned and sampled.

    Positions and velocities are about the centre of the galaxy; where it has a disc, that lies in the plane z = 0.

    Args:
        model: name of the flow, see `models.flows.build`.
        ensemble: flows whose mixture is the density of the smooth galaxy.
        substructure: whether streams and satellites are looked for.
        neighbours: particles that decide whether there is substructure at a place; what is made of fewer is not seen.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        config: settings of the training in which it is to differ from `train.config.TrainConfig`.
        engine: how flows are run, see `models.flows.engines`.
        **options: of the flow.

    Raises:
        UsageError: an argument has a value that it does not take.
    """

    def __init__(
        self,
        model: str = "nsf",
        *,
        ensemble: int = 1,
        substructure: bool = True,
        neighbours: int = 16,
        device: str | torch.device = "auto",
        config: Mapping[str, Any] | None = None,
        engine: str = "auto",
        **options: Any,
    ) -> None:
        self.device = resolve_device(device)
        self._smooth = SmoothGalaxy(
            model,
            positive_integer(ensemble, "ensemble"),
            options,
            dict(config or {}),
            self.device,
            check_engine(engine),
        )
        self.substructure, self.neighbours = substructure, positive_integer(neighbours, "neighbours")
        self._trained: tuple[Substructure, Tensor | None, Tensor, dict[str, Any]] | None = None

    @property
    def memberships(self) -> Tensor:
        """The probability of each particle to be of the smooth galaxy, and of each Gaussian: ``(n, K + 1)``."""
        return self._fitted()[0].memberships

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was trained on, and how that went."""
        return self._fitted()[3]

    def fit(
        self,
        phase_space: Any,
        smoothing: Any,
        conditions: Any = None,
        *,
        weights: Any = None,
        seed: int = 0,
        progress: bool = True,
    ) -> "Upsampler":
        """Learn the density of star particles; returns itself.

        Args:
            phase_space: positions and velocities ``(n, 6)``, such as in kpc and km/s.
            smoothing: smoothing lengths in position and in velocity ``(n, 2)``, in the same units; their ratio says
                which distances in the two belong together.
            conditions: what stars inherit from their particle and the flow is conditioned on, ``(n, C)``; None for
                nothing.
            weights: ``(n,)``, as the masses; where given, draw stars in proportion to them.
            seed: of the initial weights, the validation split, and the shuffles.
            progress: whether to show progress bars.

        Raises:
            ShapeError, NonFiniteError: an array has another shape or number of rows, or is not finite, or there are
                fewer than 200 particles.
            UsageError: a smoothing length is not positive, a weight is negative, or no position or velocity differs
                from the others.
            TrainingError: the loss is not finite.
        """
        began = time.monotonic()
        check_seed(seed)
        w, lengths, c, mass = _checked(phase_space, smoothing, conditions, weights)
        found = self._find(w, lengths, derive(seed, "sketch"))
        smooth = found.memberships[:, 0] * mass
        self._smooth.fit(w, c, smooth.float(), seed=derive(seed, "flow"), progress=progress)
        provenance = {
            "particles": len(w),
            "seed": seed,
            "seconds": time.monotonic() - began,
            "structures": len(found),
            "share_in_structures": 1 - float(smooth.sum() / mass.sum()),
            "training": self._smooth.records,
        }
        self._trained = (found, c, mass / mass.sum(), provenance)
        return self

    def sample(self, stars_per_particle: Any, *, seed: int = 0) -> UpsampledStars:
        """Draw stars of each particle; same seed, same stars.

        Args:
            stars_per_particle: one integer of at least 1, or integers ``(n,)`` of at least 0.
            seed: of the draws.

        Raises:
            UsageError: the upsampler is not fitted, or the numbers are no such integers.
            ShapeError: there is not one number for each particle.
            NonFiniteError: the flow gave NaN or infinity.
        """
        found, conditions, _, _ = self._fitted()
        check_seed(seed)
        counts = _counts(stars_per_particle, len(found.memberships))
        parents = torch.repeat_interleave(torch.arange(len(counts)), counts)
        structures = _drawn_parts(found.memberships, parents, derive(seed, "parts"))
        stars = torch.empty(len(parents), 6, dtype=torch.float64)
        smooth = torch.nonzero(structures == 0)[:, 0]
        context = None if conditions is None else conditions[parents[smooth]]
        stars[smooth] = self._smooth.sample(context, len(smooth), seed=derive(seed, "smooth"))
        clumped = torch.nonzero(structures > 0)[:, 0]
        with seeded(derive(seed, "structures")):
            stars[clumped] = found.draw(structures[clumped] - 1)
        if not bool(torch.isfinite(stars).all()):
            raise NonFiniteError("sample: the flow gave NaN or infinity; it has not learned the particles")
        return UpsampledStars(stars, parents, structures)

    def log_density(self, phase_space: Any, *, contexts: int = 200, seed: int = 0) -> Tensor:
        """Log-density of all stars, whatever their conditions: of held-out particles it says how good a fit is.

        Args:
            phase_space: ``(m, 6)``.
            contexts: particles over whose conditions the flow is averaged.
            seed: of their choice.

        Returns:
            Nats per volume of phase space, float64 ``(m,)``.

        Raises:
            ShapeError, NonFiniteError: `phase_space` has another shape, or is not finite.
            UsageError: the upsampler is not fitted, or `contexts` is not positive.
        """
        found, conditions, mass, _ = self._fitted()
        w = _phase_space(phase_space)
        smooth = found.memberships[:, 0] * mass
        if conditions is None:
            log_smooth = self._smooth.log_prob(w, None)
        else:
            with seeded(derive(seed, "contexts")):
                rows = torch.multinomial(smooth, positive_integer(contexts, "contexts"), replacement=True)
            each = [self._smooth.log_prob(w, conditions[row : row + 1]) for row in rows.tolist()]
            log_smooth = torch.stack(each).logsumexp(0) - math.log(len(each))
        log_shares = torch.log(found.memberships.T @ mass)
        joint = torch.cat([log_smooth.unsqueeze(-1), found.log_densities(w)], 1) + log_shares
        return joint.logsumexp(-1)

    def __repr__(self) -> str:
        if self._trained is None:
            return "Upsampler(not trained)"
        return f"Upsampler({self.provenance['particles']} particles, {self.provenance['structures']} structures)"

    def _find(self, w: Tensor, lengths: Tensor, seed: int) -> Substructure:
        if not self.substructure:
            nothing = w.new_zeros(0, 6)
            return Substructure(nothing, w.new_zeros(0, 6, 6), w.new_ones(len(w), 1))
        coordinates = GalacticCoordinates(w)
        events, _, ladj = coordinates.encode(w)
        components = max(1, min(_SKETCH_COMPONENTS, len(w) // _PARTICLES_PER_COMPONENT))
        sketch = fit_mixture(events, components, seed=seed, **_SKETCH).density.double()
        with torch.no_grad():
            log_b = sketch.log_prob(events) + ladj - math.log(2 * math.pi)
        return find_substructure(w, log_b, lengths.median(0).values, neighbours=self.neighbours)

    def _fitted(self) -> tuple[Substructure, Tensor | None, Tensor, dict[str, Any]]:
        if self._trained is None:
            raise UsageError("upsampler: it is not trained; call fit(phase_space, smoothing, conditions) first")
        return self._trained


def _phase_space(value: Any) -> Tensor:
    w = as_tensor(value, "phase_space", dtype=torch.float64).cpu()
    return finite(batch_of(w, (6,), "phase_space"), "phase_space")


def _checked(
    phase_space: Any, smoothing: Any, conditions: Any, weights: Any
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Particles, smoothing lengths, conditions and weights, float64 on the CPU."""
    w = _phase_space(phase_space)
    if len(w) < _FEWEST:
        raise ShapeError(f"phase_space: expected at least {_FEWEST} particles, got {len(w)}")
    if bool((w.amax(0) == w.amin(0)).any()):
        raise UsageError("phase_space: expected particles that differ in every position and velocity")
    lengths = as_tensor(smoothing, "smoothing", dtype=torch.float64).cpu()
    lengths = finite(batch_of(lengths, (2,), "smoothing"), "smoothing")
    same_length(phase_space=w, smoothing=lengths)
    if not bool((lengths > 0).all()):
        raise UsageError(f"smoothing: expected positive lengths, got {float(lengths.min()):g}")
    c = None
    if conditions is not None:
        c = finite(as_tensor(conditions, "conditions", dtype=torch.float64).cpu(), "conditions")
        if c.ndim != 2 or not c.shape[1]:
            raise ShapeError(f"conditions: expected shape (n, C), got {tuple(c.shape)}")
        same_length(phase_space=w, conditions=c)
    mass = torch.ones(len(w), dtype=torch.float64)
    if weights is not None:
        mass = finite(batch_of(as_tensor(weights, "weights", dtype=torch.float64).cpu(), (), "weights"), "weights")
        same_length(phase_space=w, weights=mass)
        if bool((mass < 0).any()) or not float(mass.sum()) > 0:
            raise UsageError("weights: expected numbers of at least 0 with a positive sum")
    return w, lengths, c, mass


def _counts(stars_per_particle: Any, particles: int) -> Tensor:
    """How many stars each particle becomes, int64 ``(n,)``."""
    if isinstance(stars_per_particle, int):
        return torch.full((particles,), positive_integer(stars_per_particle, "stars_per_particle"))
    counts = batch_of(torch.as_tensor(stars_per_particle), (), "stars_per_particle", minimum=0)
    if len(counts) != particles:
        raise ShapeError(f"stars_per_particle: expected one for each of {particles} particles, got {len(counts)}")
    if counts.is_floating_point() or counts.dtype == torch.bool or bool((counts < 0).any()):
        raise UsageError("stars_per_particle: expected integers of at least 0")
    return counts.long()


def _drawn_parts(memberships: Tensor, parents: Tensor, seed: int) -> Tensor:
    """Which part each star is of, by the memberships of its particle: ``(m,)``."""
    cumulative = memberships.cumsum(1)
    with seeded(seed):
        share = torch.rand(len(parents), 1, dtype=torch.float64)
    # Of the memberships up to the last but one: whatever their rounding, the part is one of the K + 1.
    parts = [
        (level > cumulative[rows, :-1]).sum(-1)
        for level, rows in zip(share.split(_ROWS_AT_ONCE), parents.split(_ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts) if parts else parents
