r"""`RecurrentEncoder`: time series of different lengths, irregularly sampled, with samples missing.

A series is read sample by sample into a hidden state: a plain RNN (Elman 1990), a GRU (Cho et al. 2014,
arXiv:1406.1078) or an LSTM (Hochreiter and Schmidhuber 1997), with or without peepholes (`peephole`).  Samples that
are absent are left out, so that a series has as many steps as samples, wherever in the observation they stand.  What is
read out is the last hidden state and the mean of all of them.

A state that takes a step for each sample does not know how much time has passed: where a channel is time, the gap to
the sample before is a channel, too.  Oscillations at irregular times are hard to learn from gaps alone; with
frequencies, $\cos\omega_k t$ and $\sin\omega_k t$ and their products with the other channels are channels, and their
sums over a series, its Fourier transform at the times at which it was sampled (Lomb 1976, Astrophysics and Space
Science 39, 447), go to the read-out.

Where samples are missing whatever their values, a series without some of its samples is another observation of the same
parameters.  With `drop`, training sees another part of each series every time, and overfits much later.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbi_physics.core.checks import known_keys
from sbi_physics.core.errors import UsageError
from sbi_physics.models.embedding.encoder import Encoder, channel_index, counts, flag, shape_of
from sbi_physics.models.embedding.layers import linear, orthogonal, perceptron
from sbi_physics.models.embedding.missing import Rows, masked_mean, rows, to_front
from sbi_physics.models.embedding.peephole import PeepholeLSTM
from sbi_physics.models.scaling import Scaling, Standardise

__all__ = ["CELLS", "RecurrentEncoder"]

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

_HALF_PERIOD = math.pi / math.sqrt(12)
"""The frequency with half a period in a series whose times are uniform with a spread of one."""


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
        frequencies: number of frequencies, of which the k-th has k half periods in the length of a series; 0 for none.
            Half of T is about what T samples can tell apart.
        drop: the largest share of its samples, in [0, 1), that training leaves out of a series, drawn anew each time;
            for series whose samples are missing whatever their values.
    """

    gap_scale: Tensor
    omega: Tensor

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
        frequencies: int = 0,
        drop: float = 0.0,
    ) -> None:
        sizes = shape_of(shape, "(samples, channels)", 2)
        known_keys([cell], list(CELLS), "cell")
        if flag(peephole, "peephole") and cell != "lstm":
            raise UsageError(f"peephole: only an lstm has one, got the cell {cell!r}")
        self.times, self.drop = channel_index(times, sizes[1], "times"), _share(drop)
        known = counts(frequencies=frequencies) if frequencies else {"frequencies": 0}
        if frequencies and times is None:
            raise UsageError(f"frequencies: expected 0 without a channel that is time, got {frequencies}")
        options: dict[str, Any] = {
            **counts(features=features, hidden=hidden, layers=layers),
            "peephole": peephole,
            "bidirectional": flag(bidirectional, "bidirectional"),
            "times": times,
            **known,
            "drop": self.drop,
        }
        super().__init__(cell, sizes, features, options)
        # Cosine and sine of time; those times each other channel.
        waves, products = 2 * frequencies, 2 * frequencies * (sizes[1] - 1)
        inputs = 2 * sizes[1] + (times is not None) + waves + products
        directions = 2 if bidirectional else 1
        self.stacks = nn.ModuleList(_stack(cell, inputs, hidden, layers, peephole) for _ in range(directions))
        width = 2 * hidden * directions
        self.norm = nn.LayerNorm(width)
        # At which of the frequencies a series is strong is no linear question.
        ins = width + 1 + products
        self.head = perceptron(ins, 2 * hidden, features, 2) if frequencies else linear(ins, features)
        # Scaled times have a spread of one: this is about one over their mean gap.  Kept with the weights, because it
        # belongs to what they have learned.
        self.register_buffer("gap_scale", torch.tensor(float(sizes[0])))
        self.register_buffer("omega", _HALF_PERIOD * torch.arange(1, frequencies + 1), persistent=False)

    def scaling(self) -> Scaling:
        """One mean and scale for each channel, shared by the samples."""
        return Standardise(self.shape, shared=(0,))

    def encode(self, x: Tensor) -> Tensor:
        """Features ``(n, features)``."""
        series = to_front(rows(self._thinned(x), self.times))
        inputs, waves, present = self._inputs(series), self._waves(series), series.present
        inputs, count = torch.cat([inputs, waves], -1), present.sum(1)
        last = (count - 1).clamp(min=0)
        summaries = []
        for direction, stack in enumerate(self.stacks):
            states = _states(stack, inputs if direction == 0 else _backwards(inputs, last))
            at_end = states.gather(1, last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)
            summaries += [at_end, masked_mean(states, present)]
        summary = self.norm(torch.cat(summaries, -1))
        number = count.to(summary.dtype).unsqueeze(-1)
        # Of order one for noise, whatever the number of samples.
        transform = waves[..., 2 * len(self.omega) :].sum(1) / number.clamp(min=1).sqrt()
        return self.head(torch.cat([summary, torch.log1p(number), transform], -1))

    def _thinned(self, x: Tensor) -> Tensor:
        """In training, series without a random part of their samples."""
        if not (self.training and self.drop):
            return x
        n, length, _ = x.shape
        shares = self.drop * torch.rand(n, 1, device=x.device)
        left_out = torch.rand(n, length, device=x.device) < shares
        return torch.where(left_out.unsqueeze(-1), torch.nan, x)

    def _inputs(self, series: Rows) -> Tensor:
        """What the network reads ``(n, T, channels)``; zero after the last sample."""
        channels = [series.values, series.missing]
        if self.times is not None:
            time = series.values[..., self.times]
            gap = torch.diff(time, dim=1, prepend=time[:, :1]) * self.gap_scale
            gap = torch.where(series.present, gap.sign() * torch.log1p(gap.abs()), 0.0)
            channels.append(gap.unsqueeze(-1))
        return torch.cat(channels, -1)

    def _waves(self, series: Rows) -> Tensor:
        """K cosines and sines of time, then times each other channel ``(n, T, 2 K C)``; zero where absent."""
        if self.times is None or not len(self.omega):
            return series.values[..., :0]
        phase = series.values[..., self.times].unsqueeze(-1) * self.omega
        wave = torch.cat([phase.cos(), phase.sin()], -1) * series.present.unsqueeze(-1)
        others = [series.values[..., c : c + 1] * wave for c in range(self.shape[1]) if c != self.times]
        return torch.cat([wave, *others], -1)


def _share(drop: float) -> float:
    if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1:
        raise UsageError(f"drop: expected a number in [0, 1), got {drop!r}")
    return float(drop)


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
