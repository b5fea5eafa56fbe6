"""One step of training: the events of a batch, their gradient, and the update of weights and averages.

The step is a program of tensors from beginning to end: which events, the learning rate and the decay of the average
come in as tensors, and nothing waits for the host.  On a CUDA device it can therefore be recorded once as a CUDA graph
and replayed: a flow is hundreds of operations of a few microseconds, whose launches would take most of the time.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from sbi_physics.train.config import TrainConfig, TrainingRecord
from sbi_physics.train.parallel import Processes
from sbi_physics.train.split import Split
from sbi_physics.train.state import TrainingState

__all__ = ["Step"]

_log = logging.getLogger(__name__)
# Steps that run as usual before one is recorded: libraries choose their algorithms, and optimisers make their moments.
_WARM_UP = 3


class Step:
    """A step that updates the state of a training run.

    Args:
        state: what is trained.
        gradient: ``gradient(weights, *batch)`` adds the gradient of the weighted sum and gives the losses ``(n,)``.
        split: the events.
        config: settings.
        processes: those that share the work.
        copies: batches side by side in each step.
        graphed: whether to replay the step as a CUDA graph, on a device that can.
    """

    def __init__(
        self,
        state: TrainingState[TrainingRecord],
        gradient: Callable[..., Tensor],
        split: Split,
        config: TrainConfig,
        processes: Processes,
        *,
        copies: int,
        graphed: bool,
    ) -> None:
        device = split.train[0].device
        self._state, self._gradient, self._split = state, gradient, split
        self._clip_norm, self._averages, self._processes = config.clip_norm, config.ema > 0, processes
        self._copies, self._batch = copies, copies * state.record.batch_size
        self._rows = self._share(torch.zeros(self._batch, dtype=torch.int64, device=device)).clone()
        self._equal = torch.full((len(self._rows),), 1 / self._batch, device=device)
        self._decay = torch.zeros((), dtype=torch.float64, device=device)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed")
        self._graphed = graphed and device.type == "cuda" and processes.size == 1
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(device) if self._graphed else None
        self._done = 0
        self._value = torch.zeros((), device=device)

    def __call__(self, rows: Tensor, learning_rate: float, decay: float) -> Tensor:
        """Take the events `rows` ``(batch,)``; returns their mean loss, a scalar that the next call overwrites."""
        self._rows.copy_(self._share(rows))
        self._decay.fill_(decay)
        self._state.set_learning_rate(learning_rate)
        self._done += 1
        if self._graph is not None:
            self._graph.replay()
        elif self._stream is None:
            self._update()
        elif self._done <= _WARM_UP:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._update()
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            self._record()
        return self._value

    def _share(self, rows: Tensor) -> Tensor:
        """What this process takes of each of the batches."""
        return torch.cat([self._processes.share(batch) for batch in rows.chunk(self._copies)])

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._update()
        except RuntimeError as error:
            _log.warning("the training step runs without a CUDA graph: %s", " ".join(str(error).split())[:200])
            self._stream = None
            self._update()
            return
        self._graph = graph
        graph.replay()

    def _update(self) -> None:
        state, split = self._state, self._split
        weights = self._equal if split.train_weights is None else split.train_weights[self._rows] / self._batch
        state.zero_gradients()
        with self._autocast:
            losses = self._gradient(weights, *(tensor[self._rows] for tensor in split.train))
        value = torch.dot(weights, losses.to(weights))
        for flat in state.parameters:
            self._processes.sum(flat.gradients)
        norm = state.clip_gradients(self._clip_norm)
        # A gradient that is not finite becomes a loss that is not finite, seen once an epoch without waiting here.
        self._value.copy_(self._processes.sum(value) + 0 * norm)
        for optimizer in state.optimizers:
            optimizer.step()
        if self._averages:
            state.update_average(self._decay)
