"""`RecurrentEncoder`: time series of different lengths, irregularly sampled, with samples missing.

A series is read sample by sample into a hidden state: a plain RNN (Elman 1990), a GRU (Cho et al. 2014,
arXiv:1406.1078) or an LSTM (Hochreiter and Schmidhuber 1997), with or without peepholes (`peephole`).  Samples that
are absent are left out, so that a series has as many steps as samples, wherever in the observation they stand.  What is
read out is the last hidden state and the mean of all of them.

A state that takes a step for each sample does not know how much time has passed: where a channel is time, the gap to
the sample before is a channel, too.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import UsageError
from sbi_physics.models.embedding.encoder import Encoder, channel_index, counts, flag, shape_of
from sbi_physics.models.embedding.layers import linear, orthogonal
from sbi_physics.models.embedding.missing import Rows, masked_mean, rows, to_front
from sbi_physics.models.embedding.peephole import PeepholeLSTM
from sbi_physics.models.scaling import Scaling, Standardise

__all__ = ["CELLS", "RecurrentEncoder"]

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentEncoder(Encoder):
    """A recurrent network; rows of NaN are samples that are not there, and single NaN are missing channels.

    Args:
        shape: ``(T, C)``, at most T samples of C numbers each, in the order of time.
        cell: ``"rnn"``, ``"gru"`` or ``"lstm"``.
        features: width of what comes out.
        hidden: width of the hidden state.
        layers: number of recurrent layers, each of which reads the states of the one below.
        peephole: whether the gates of an LSTM see its cell state.
        bidirectional: whether a second network reads the series backwards.
        times: the channel that is time, or None; samples without it are absent, too.
    """

    gap_scale: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        cell: str = "gru",
        *,
        features: int = 32,
        hidden: int = 64,
        layers: int = 1,
        peephole: bool = False,
        bidirectional: bool = False,
        times: int | None = None,
    ) -> None:
        sizes = shape_of(shape, "(samples, channels)", 2)
        known_keys([cell], list(CELLS), "cell")
        if flag(peephole, "peephole") and cell != "lstm":
            raise UsageError(f"peephole: only an lstm has one, got the cell {cell!r}")
        self.times = channel_index(times, sizes[1], "times")
        options: dict[str, Any] = {
            **counts(features=features, hidden=hidden, layers=layers),
            "peephole": peephole,
            "bidirectional": flag(bidirectional, "bidirectional"),
            "times": times,
        }
        super().__init__(cell, sizes, features, options)
        inputs = 2 * sizes[1] + (times is not None)
        directions = 2 if bidirectional else 1
        self.stacks = nn.ModuleList(_stack(cell, inputs, hidden, layers, peephole) for _ in range(directions))
        width = 2 * hidden * directions
        self.norm = nn.LayerNorm(width)
        self.head = linear(width + 1, self.features)
        # Scaled times have a spread of one: this is about one over their mean gap.  Kept with the weights, because it
        # belongs to what they have learned.
        self.register_buffer("gap_scale", torch.tensor(float(sizes[0])))

    def scaling(self) -> Scaling:
        """One mean and scale for each channel, shared by the samples."""
        return Standardise(self.shape, shared=(0,))

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        series = to_front(rows(x, self.times))
        inputs, present = self._inputs(series), series.present
        count = present.sum(1)
        last = (count - 1).clamp(min=0)
        summaries = []
        for direction, stack in enumerate(self.stacks):
            states = _states(stack, inputs if direction == 0 else _backwards(inputs, last))
            at_end = states.gather(1, last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)
            summaries += [at_end, masked_mean(states, present)]
        summary = self.norm(torch.cat(summaries, -1))
        return self.head(torch.cat([summary, torch.log1p(count.to(summary.dtype)).unsqueeze(-1)], -1))

    def _inputs(self, series: Rows) -> Tensor:
        """What the network reads ``(n, T, channels)``; zero after the last sample."""
        channels = [series.values, series.missing]
        if self.times is not None:
            time = series.values[..., self.times]
            gap = torch.diff(time, dim=1, prepend=time[:, :1]) * self.gap_scale
            gap = torch.where(series.present, gap.sign() * torch.log1p(gap.abs()), 0.0)
            channels.append(gap.unsqueeze(-1))
        return torch.cat(channels, -1)


def _states(stack: nn.Module, inputs: Tensor) -> Tensor:
    """Hidden states of the last layer ``(n, T, hidden)``."""
    with warnings.catch_warnings():
        # Training lays all weights of a model side by side, not in the order that cuDNN would like best.
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk of memory")
        return stack(inputs)[0]


def _backwards(inputs: Tensor, last: Tensor) -> Tensor:
    """Each series ``(T, C)`` from its last sample to its first."""
    steps = torch.arange(inputs.shape[1], device=inputs.device)
    order = (last.unsqueeze(1) - steps).clamp(min=0)
    return inputs.gather(1, order.unsqueeze(-1).expand(-1, -1, inputs.shape[-1]))


def _stack(cell: str, inputs: int, hidden: int, layers: int, peephole: bool) -> nn.Module:
    if peephole:
        return PeepholeLSTM(inputs, hidden, layers)
    stack = CELLS[cell](inputs, hidden, layers, batch_first=True)
    for name, weight in stack.named_parameters():
        with torch.no_grad():
            if name.startswith("weight_ih"):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            elif name.startswith("weight_hh"):
                weight.copy_(orthogonal(hidden, hidden, len(weight) // hidden))
            else:
                nn.init.zeros_(weight)
                if cell == "lstm" and name.startswith("bias_ih"):
                    # What was seen is kept until the network learns to forget; the gates stand as i, f, g, o.
                    weight[hidden : 2 * hidden] = 1.0
    return stack
