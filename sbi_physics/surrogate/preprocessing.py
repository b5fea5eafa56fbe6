"""`Preprocessing`: how the outputs of a simulator become the events of one model, or of several in a row.

A chain of models splits what is hard to learn at once: the first draws a few numbers that matter most, the next draws
others given those.  `Plain` has one stage for all numbers; `showers.Showers` draws the energies of the layers of a
calorimeter first.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sbi_physics.core.errors import UsageError
from sbi_physics.models.columns import Columns
from sbi_physics.store.disk_rows import DiskRows
from sbi_physics.store.row_parts import RowParts, Rows, row_parts
from sbi_physics.surrogate.symmetry import Symmetry, fit_columns

__all__ = ["Plain", "Preprocessing"]

_DECADE = 10.0
_TINY = 1e-30


class Preprocessing(nn.Module, ABC):
    """A map between outputs x and the events of the stages, learned once from data.

    Attributes:
        x_shape: the shape of one output.
        contexts: the numbers of parameters P of a simulation.
        STREAMS: whether `fit` and `encode` take outputs that stay on the disk; else they have to fit in memory.
    """

    STREAMS: ClassVar[bool] = False

    def __init__(self, x_shape: Sequence[int], contexts: int) -> None:
        super().__init__()
        self.x_shape, self.contexts = torch.Size(x_shape), contexts

    @property
    @abstractmethod
    def widths(self) -> tuple[tuple[int, int], ...]:
        """Numbers of an event and of its context, for each stage."""

    @abstractmethod
    def fit(self, theta: Tensor, x: Any) -> "Preprocessing":
        """Learn from theta ``(n, P)`` and outputs ``(n, *x_shape)``, a tensor or `DiskRows`; returns itself.

        Raises:
            UsageError, ShapeError: the outputs cannot be those of such a simulator.
        """

    @abstractmethod
    def encode(self, theta: Tensor, x: Any, *, seed: int) -> list[Any]:
        """The events ``(n, D_s)`` of each stage s, with noise where outputs are points.

        Tensors; or for the last stage `RowParts`, where x is `DiskRows`.
        """

    @abstractmethod
    def context(self, theta: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """The contexts ``(n, C_s)`` of the stage after the earlier ones."""

    @abstractmethod
    def decode(self, theta: Tensor, events: Sequence[Tensor]) -> Tensor:
        """Outputs ``(n, *x_shape)`` of the events of all stages."""

    def outputs(self, theta: Tensor, events: Sequence[Tensor]) -> Tensor:
        """As `decode`, in the fastest way on the machine at hand; equal but for rounding."""
        return self.decode(theta, events)

    @property
    def symmetry(self) -> Symmetry | None:
        """Permutations of the numbers of an output that change nothing."""
        return None

    @property
    def stage_symmetries(self) -> list[Symmetry | None]:
        """The same group on the events of each stage, element by element; None where it leaves them as they are."""
        return [None for _ in self.widths]

    def features(self, theta: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The numbers ``(n,)`` that a check looks at; those of the outputs that vary, if nothing else is known."""
        columns = enumerate(x.flatten(1).unbind(1))
        return {f"x[{i}]": column for i, column in columns if bool((column != column[0]).any())}

    def energy(self, theta: Tensor, x: Tensor) -> Tensor | None:
        """The energy seen ``(n,)``, where theta is the energy put in."""
        return None

    def model_options(self, model: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the model of the last stage that suit these outputs; known once it is fitted.

        Args:
            model: its name.
            chosen: options that the user has chosen, which come before these.
        """
        return {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What `build.build_preprocessing` needs to make it again, in types that JSON knows; tensors are its state."""


class Plain(Preprocessing):
    """All numbers at once, each by its kind (`models.columns`).

    Args:
        x_shape: the shape of one output.
        contexts: P.
        permutations: of the numbers of an output, flat, that leave their distribution at any theta as it is (see
            `symmetry.Symmetry`); their products do, too.

    Raises:
        UsageError: a permutation is none of those numbers.
    """

    KIND = "plain"
    STREAMS = True
    logarithmic: Tensor

    def __init__(self, x_shape: Sequence[int], contexts: int, *, permutations: Sequence[Sequence[int]] = ()) -> None:
        super().__init__(x_shape, contexts)
        self.columns = Columns(self.x_shape.numel())
        self.permutations = [[int(i) for i in permutation] for permutation in permutations]
        if any(len(permutation) != len(self.columns.kinds) for permutation in self.permutations):
            raise UsageError(f"permutations: expected {len(self.columns.kinds)} numbers in each, as in an output")
        self.group = Symmetry(self.permutations) if self.permutations else None
        self.register_buffer("logarithmic", torch.zeros(contexts, dtype=torch.bool))

    @property
    def widths(self) -> tuple[tuple[int, int], ...]:
        """One stage."""
        return ((self.columns.varying, self.contexts),)

    @property
    def symmetry(self) -> Symmetry | None:
        """The group of the permutations."""
        return self.group

    @property
    def stage_symmetries(self) -> list[Symmetry | None]:
        """The group on the numbers that vary."""
        return [None if self.group is None else self.group.restricted(self.columns.varies)]

    def fit(self, theta: Tensor, x: Any) -> "Plain":
        """Find the kinds of the numbers, and which parameters count by their logarithm."""
        fit_columns(self.columns, self._flat(x), self.group)
        self.logarithmic.copy_((theta > 0).all(0) & (theta.amax(0) > _DECADE * theta.median(0).values))
        return self

    def encode(self, theta: Tensor, x: Any, *, seed: int) -> list[Any]:
        """One event for each output."""
        events = self.columns.encoded(self._flat(x), seed=seed)
        return [events if isinstance(x, DiskRows) else events.tensor(x.device)]

    def _flat(self, x: Rows) -> RowParts:
        return row_parts(x).map(lambda part: part.flatten(1), (self.x_shape.numel(),))

    def context(self, theta: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """The parameters, or their logarithms where they are positive and range over decades."""
        return torch.where(self.logarithmic, theta.clamp(min=_TINY).log(), theta)

    def decode(self, theta: Tensor, events: Sequence[Tensor]) -> Tensor:
        """Outputs of the events."""
        return self.columns.decode(events[0]).reshape(-1, *self.x_shape)

    def describe(self) -> dict[str, Any]:
        """Its kind and its symmetry."""
        return {"kind": self.KIND, **({"permutations": self.permutations} if self.permutations else {})}
