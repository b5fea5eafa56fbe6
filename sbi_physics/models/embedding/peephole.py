r"""`PeepholeLSTM`: an LSTM whose gates see the cell state.

$$ i_t = \sigma(W_i x_t + U_i h_{t-1} + p_i \odot c_{t-1} + b_i), \quad
   f_t = \sigma(W_f x_t + U_f h_{t-1} + p_f \odot c_{t-1} + b_f), $$
$$ c_t = f_t \odot c_{t-1} + i_t \odot \tanh(W_g x_t + U_g h_{t-1} + b_g), $$
$$ o_t = \sigma(W_o x_t + U_o h_{t-1} + p_o \odot c_t + b_o), \quad h_t = o_t \odot \tanh(c_t) $$

Gers and Schmidhuber 2000 (IJCNN, "Recurrent nets that time and count"): with the peepholes p the gates can measure
intervals of time, which the state carries but its gated output hides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbi_physics.models.embedding.layers import linear, orthogonal

__all__ = ["PeepholeLSTM"]


class PeepholeLSTM(nn.Module):
    """Stacked LSTM layers with peepholes, called as `torch.nn.LSTM` with ``batch_first=True``.

    The gates stand in the order i, f, g, o of `torch.nn.LSTM`; the peepholes ``(3, hidden)`` in the order i, f, o.

    Args:
        inputs: number of channels.
        hidden: width of the state.
        layers: number of layers, each of which sees the hidden states of the one below.
    """

    def __init__(self, inputs: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * (layers - 1)
        inwards = [linear(width, 4 * hidden) for width in widths]
        self.recurrent = nn.ParameterList(nn.Parameter(orthogonal(hidden, hidden, 4)) for _ in widths)
        self.peepholes = nn.ParameterList(
            nn.Parameter(torch.empty(3, hidden).uniform_(-(hidden**-0.5), hidden**-0.5)) for _ in widths
        )
        for layer in inwards:
            # What was seen is kept until the network learns to forget.
            nn.init.ones_(layer.bias[hidden : 2 * hidden])
        self.inputs = nn.ModuleList(inwards)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Hidden states of the last layer ``(n, T, hidden)``, and the last state and cell ``(layers, n, hidden)``."""
        ends = []
        for project, recurrent, peepholes in zip(self.inputs, self.recurrent, self.peepholes, strict=True):
            x, cell = _layer(project(x), recurrent, peepholes)
            ends.append((x[:, -1], cell))
        states, cells = zip(*ends, strict=True)
        return x, (torch.stack(states), torch.stack(cells))


def _layer(projected: Tensor, recurrent: Tensor, peepholes: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states ``(n, T, H)`` and the last cell ``(n, H)``; the inputs give ``(n, T, 4H)`` to the gates."""
    before, after = peepholes[:2].reshape(-1), peepholes[2]
    width = len(after)
    hidden = cell = projected.new_zeros(len(projected), width)
    states = []
    for from_input in projected.unbind(1):
        gates = from_input + F.linear(hidden, recurrent)
        keep = gates[:, : 2 * width] + before * cell.repeat(1, 2)
        enter, forget = torch.sigmoid(keep).chunk(2, -1)
        proposed, leave = gates[:, 2 * width :].chunk(2, -1)
        cell = forget * cell + enter * torch.tanh(proposed)
        hidden = torch.sigmoid(leave + after * cell) * torch.tanh(cell)
        states.append(hidden)
    return torch.stack(states, 1), cell
