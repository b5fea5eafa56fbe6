"""Recurrent networks against their equations, step by step, and against torch's own; gaps in time."""

import pytest
import torch
from torch import nn

from sbi_physics.core.random import seeded
from sbi_physics.models.embedding.build import build_encoder
from sbi_physics.models.embedding.peephole import PeepholeLSTM

N, T, C, H = 3, 6, 2, 4


def series(seed=0, shape=(N, T, C)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def peephole_lstm(layers=1):
    with seeded(1):
        return PeepholeLSTM(C, H, layers).double()


def slow_peephole_lstm(x, weight, recurrent, offset, peepholes):
    """The equations of Gers and Schmidhuber for one series ``(T, C)``, unit by unit."""
    hidden, cell, states = [0.0] * H, [0.0] * H, []
    for step in x.tolist():
        gates = [
            sum(weight[row][c] * step[c] for c in range(len(step)))
            + sum(recurrent[row][j] * hidden[j] for j in range(H))
            + offset[row]
            for row in range(4 * H)
        ]
        new_hidden, new_cell = [], []
        for unit in range(H):
            enter = 1 / (1 + 2.718281828459045 ** -(gates[unit] + peepholes[0][unit] * cell[unit]))
            forget = 1 / (1 + 2.718281828459045 ** -(gates[H + unit] + peepholes[1][unit] * cell[unit]))
            proposed = float(torch.tanh(torch.tensor(gates[2 * H + unit], dtype=torch.float64)))
            value = forget * cell[unit] + enter * proposed
            leave = 1 / (1 + 2.718281828459045 ** -(gates[3 * H + unit] + peepholes[2][unit] * value))
            new_cell.append(value)
            new_hidden.append(leave * float(torch.tanh(torch.tensor(value, dtype=torch.float64))))
        hidden, cell = new_hidden, new_cell
        states.append(hidden)
    return torch.tensor(states, dtype=torch.float64)


def test_the_peephole_lstm_follows_its_equations():
    network, x = peephole_lstm(layers=2), series()
    states, (last, _) = network(x)
    for i in range(N):
        expected = x[i]
        for layer in range(2):
            linear = network.inputs[layer]
            tensors = (linear.weight, network.recurrent[layer], linear.bias, network.peepholes[layer])
            expected = slow_peephole_lstm(expected, *(tensor.tolist() for tensor in tensors))
            torch.testing.assert_close(last[layer, i].detach(), expected[-1])
        torch.testing.assert_close(states[i].detach(), expected)


@pytest.mark.parametrize("which", [None, 0, 1, 2], ids=["none", "input", "forget", "output"])
def test_without_peepholes_it_is_the_lstm_of_torch_and_with_any_it_is_not(which):
    network, x = peephole_lstm(layers=2), series()
    plain = nn.LSTM(C, H, 2, batch_first=True).double()
    with torch.no_grad():
        for layer in range(2):
            kept = torch.zeros_like(network.peepholes[layer])
            if which is not None:
                kept[which] = network.peepholes[layer][which]
            network.peepholes[layer].copy_(kept)
            getattr(plain, f"weight_ih_l{layer}").copy_(network.inputs[layer].weight)
            getattr(plain, f"weight_hh_l{layer}").copy_(network.recurrent[layer])
            getattr(plain, f"bias_ih_l{layer}").copy_(network.inputs[layer].bias)
            getattr(plain, f"bias_hh_l{layer}").zero_()
    states, (last, cells) = network(x)
    expected, (expected_last, expected_cells) = plain(x)
    if which is None:
        torch.testing.assert_close(states, expected)
        torch.testing.assert_close(last, expected_last)
        torch.testing.assert_close(cells, expected_cells)
    else:
        assert float((states - expected).detach().abs().max()) > 1e-3


def test_gradients_of_the_peephole_lstm():
    network = peephole_lstm()
    assert torch.autograd.gradcheck(lambda x: network(x)[0], series(shape=(2, 3, C)).requires_grad_())


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_whole_series_goes_through_the_network_of_torch(cell):
    """The features are the head on the last state, the mean state and the number of samples."""
    encoder = build_encoder(cell, (T, C), hidden=H, features=3, layers=2).double()
    x = series()
    (stack,) = encoder.stacks
    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell]
    plain = kind(2 * C, H, 2, batch_first=True).double()
    plain.load_state_dict(stack.state_dict())
    states, _ = plain(torch.cat([x, torch.zeros_like(x)], -1))
    summary = encoder.norm(torch.cat([states[:, -1], states.mean(1)], -1))
    count = torch.full((N, 1), T + 1.0, dtype=torch.float64).log()
    torch.testing.assert_close(encoder(x), encoder.head(torch.cat([summary, count], -1)))


@pytest.mark.parametrize("options", [{}, {"peephole": True}], ids=["torch", "peephole"])
def test_an_lstm_starts_by_remembering(options):
    encoder = build_encoder("lstm", (T, C), hidden=H, layers=2, **options)
    (stack,) = encoder.stacks
    for layer in range(2):
        if options:
            offset = stack.inputs[layer].bias
        else:
            offset = getattr(stack, f"bias_ih_l{layer}") + getattr(stack, f"bias_hh_l{layer}")
        assert offset.reshape(4, H).mean(1).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_both_ways_is_one_network_on_the_series_and_one_on_its_reverse():
    """So that with exchanged networks the reversed series has exchanged summaries."""
    encoder = build_encoder("gru", (T, C), hidden=H, features=3, bidirectional=True).double()
    twin = build_encoder("gru", (T, C), hidden=H, features=3, bidirectional=True).double()
    twin.load_state_dict(encoder.state_dict())
    twin.stacks = nn.ModuleList([encoder.stacks[1], encoder.stacks[0]])
    with torch.no_grad():
        weight = encoder.head.weight
        twin.head.weight.copy_(torch.cat([weight[:, 2 * H : 4 * H], weight[:, : 2 * H], weight[:, 4 * H :]], 1))
    x = series()
    x[0, 2] = x[1, 4:] = torch.nan
    torch.testing.assert_close(twin(x.flip(1)), encoder(x))


def test_the_gap_to_the_sample_before_is_seen():
    """To the sample before it that is there, as the last channel that the network reads."""
    encoder = build_encoder("gru", (3, 2), hidden=H, features=3, times=0).double()
    x = torch.tensor([[[0.0, 1.0], [0.5, 2.0], [2.0, 3.0]]], dtype=torch.float64)
    seen = []
    encoder.stacks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(x)
    x[0, 1] = torch.nan
    encoder(x)
    encoder(x.flip(1))
    expected = torch.log1p(3 * torch.tensor([0.0, 0.5, 1.5], dtype=torch.float64))
    torch.testing.assert_close(seen[0][0, :, -1], expected)
    torch.testing.assert_close(seen[1][0, :, -1], torch.log1p(3 * torch.tensor([0.0, 2.0], dtype=torch.float64)))
    torch.testing.assert_close(seen[2][0, :, -1], -torch.log1p(3 * torch.tensor([0.0, 2.0], dtype=torch.float64)))


def test_the_transform_of_a_series_is_that_at_its_times():
    encoder = build_encoder("gru", (5, 2), hidden=H, features=3, times=0, frequencies=2).double()
    x = series(shape=(1, 5, 2))
    x[0, 3] = torch.nan
    seen = []
    encoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(x)
    encoder(x[:, [4, 1, 3, 0, 2]])
    t, y = x[0, [0, 1, 2, 4]].unbind(-1)
    phase = t.unsqueeze(1) * torch.tensor([1.0, 2.0]).double() * torch.pi / 12**0.5
    wave = torch.cat([phase.cos(), phase.sin()], 1)
    expected = (y.unsqueeze(1) * wave).sum(0) / 2
    torch.testing.assert_close(seen[0][0, -4:], expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen[1][0, -4:], expected, rtol=1e-6, atol=1e-6)


def test_training_leaves_samples_out_and_nothing_else_does():
    encoder = build_encoder("gru", (50, 2), hidden=H, features=3, drop=0.6).double()
    x = series(shape=(400, 50, 2))
    counts = []
    encoder.head.register_forward_pre_hook(lambda _, inputs: counts.append(torch.expm1(inputs[0][:, -1].detach())))
    with seeded(1):
        first = encoder(x)
    with seeded(1):
        assert torch.equal(encoder(x), first)
    # A share from 0 to 0.6 of 50 samples is left out of each series, 0.3 in the mean with a spread of 0.6 / sqrt(12).
    share = 1 - counts[0] / 50
    assert abs(float(share.mean()) - 0.3) < 4 * (0.03 + 0.3 * 0.7 / 50) ** 0.5 / 400**0.5
    assert float(share.max()) > 0.5
    assert float(share.min()) < 0.05
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))
    torch.testing.assert_close(counts[-1], torch.full((400,), 50.0, dtype=torch.float64))
