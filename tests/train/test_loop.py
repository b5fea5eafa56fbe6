"""The training loop: known answers, weights as replicated events, and each thing that it promises on the way."""

import copy
import io
import math
import sys

import pytest
import torch
import torch.distributions as td
from torch import nn

from sbi_physics.core.errors import NonFiniteError, ShapeError, TrainingError, UsageError
from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.loop import train

FULL = 10**6
"""A batch size that takes all events at once."""


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def split(location, fit):
    """The rows that the loop trains on and those that it holds out."""

    def rows(n, held_out, seed=0):
        model = location()
        data = torch.arange(n, dtype=torch.float64).unsqueeze(-1)
        fit(model, data, seed=seed, epochs=1, batch_size=FULL, validation_fraction=held_out / n)
        return tuple(model.rows(training).squeeze(-1).long() for training in (True, False))

    return rows


@pytest.fixture
def arranged(split):
    """One tensor of which the loop will train on the first argument and hold out the second."""

    def arrange(training, held_out):
        rows, held_out_rows = split(len(training) + len(held_out), len(held_out))
        data = training.new_empty(len(training) + len(held_out), *training.shape[1:])
        data[rows.sort().values], data[held_out_rows] = training, held_out
        return data

    return arrange


class TestKnownAnswers:
    @pytest.mark.parametrize("schedule", ["one-cycle", "cosine"])
    def test_the_mean_of_a_gaussian(self, schedule, location, fit):
        data = normal(10_000, 2) + torch.tensor([2.0, -1.0])
        model = location(2)
        record = fit(model, data, epochs=10, learning_rate=0.05, schedule=schedule, weight_decay=0.0)
        # The state kept is the one that 1,000 held-out events like best: their mean has an error of 0.03.
        torch.testing.assert_close(model.mu.detach(), data.mean(0), rtol=0, atol=0.1)
        assert record.events == 9000
        assert record.batch_size == 128
        assert record.stopped == "epochs"
        assert len(record.train_loss) == len(record.validation_loss) == 10
        # Half of a chi-squared with two degrees of freedom: 1 on average, and it scatters by 1.
        assert record.best_validation_loss == pytest.approx(1.0, abs=4 / 1000**0.5)

    def test_least_squares(self, fit):
        class Line(nn.Linear):
            def loss(self, x, y):
                return (self(x).squeeze(-1) - y) ** 2

        x = normal(2000, 3)
        y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 0.7 + 0.1 * normal(2000, seed=1)
        model = Line(3, 1).double()
        fit(model, [x, y], epochs=15, learning_rate=0.05, weight_decay=0.0)
        design = torch.cat([x, torch.ones(2000, 1)], 1)
        expected = torch.linalg.lstsq(design, y.unsqueeze(-1)).solution.squeeze(-1)
        found = torch.cat([model.weight[0], model.bias]).detach()
        # The answer of the 200 held-out events has an error of 0.1 / sqrt(200) = 0.007.
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)

    @pytest.mark.parametrize("model", ["maf", "nsf"])
    def test_a_conditional_density(self, model):
        """theta = x + noise: the mean log-density reaches minus the entropy of the noise."""
        x = normal(2000, 1, dtype=torch.float32)
        theta = x + 0.5 * normal(2000, 1, seed=1, dtype=torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            flow = build_flow(model, 1, 1, transforms=1, hidden_features=16, blocks=1)
            density = FlowDensity(flow, (1,), (1,)).fit_scaling(theta, x)
        data = [density.encode(theta)[0].detach(), density.context_scaling(x)]
        config = TrainConfig(epochs=12, batch_size=200, learning_rate=0.02)
        record = train(density, density.loss, data, config=config, progress=False)
        assert not density.training
        points = normal(4000, 1, seed=2, dtype=torch.float32)
        truth = td.Normal(points, 0.5)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            draws = truth.sample()
        with torch.no_grad():
            kl = truth.log_prob(draws).squeeze(-1) - density.log_prob(draws, points)
        assert -0.01 < float(kl.mean()) < 0.03
        entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25) + float(density.event_scaling.ladj)
        # 200 events are held out; their losses scatter by sqrt(1/2) each.
        assert record.best_validation_loss == pytest.approx(entropy, abs=4 * (0.5 / 200) ** 0.5)


class TestWeights:
    EVENTS = normal(24, 1) + 1
    HELD_OUT = normal(6, 1, seed=1) + 4  # beyond every answer: each step is better than the one before
    ONE_OR_TWO = 1 + torch.arange(24) % 2
    ZERO_TO_THREE = torch.arange(24) % 4

    def run(self, training, weights, location, fit, arranged):
        model = location()
        data = arranged(training, self.HELD_OUT)
        if weights is not None:
            weights = arranged(weights.float(), torch.ones(len(self.HELD_OUT)))
        record = fit(
            model,
            data,
            weights,
            epochs=20,
            batch_size=FULL,
            validation_fraction=len(self.HELD_OUT) / len(data),
            learning_rate=0.03,
        )
        return model.mu.item(), record

    @pytest.mark.parametrize(
        ("training", "weights", "equivalent"),
        [
            (EVENTS, ONE_OR_TWO, EVENTS.repeat_interleave(ONE_OR_TWO, 0)),
            (EVENTS, ZERO_TO_THREE, EVENTS.repeat_interleave(ZERO_TO_THREE, 0)),
            (torch.cat([EVENTS, EVENTS[:9]]), torch.cat([torch.ones(24), -torch.ones(9)]), EVENTS[9:]),
            (EVENTS, torch.full((24,), 1e-3), EVENTS),
        ],
        ids=["one or two", "zero to three", "negative", "scale"],
    )
    def test_weights_are_replicated_events(self, training, weights, equivalent, location, fit, arranged):
        """The whole run is the same, step by step, not only its end."""
        mu, record = self.run(training, weights, location, fit, arranged)
        expected, plain = self.run(equivalent, None, location, fit, arranged)
        unweighted, _ = self.run(training, None, location, fit, arranged)
        assert mu == pytest.approx(expected, rel=1e-5)
        assert record.train_loss == pytest.approx(plain.train_loss, rel=1e-5)
        assert record.validation_loss == pytest.approx(plain.validation_loss, rel=1e-5)
        if equivalent is not training:
            assert unweighted != pytest.approx(expected, rel=1e-3)

    def test_negative_weights_converge_to_the_weighted_answer(self, location, fit):
        data = torch.cat([normal(1500, 1), normal(500, 1, seed=1) + 3])
        weights = torch.cat([torch.ones(1500), torch.full((500,), -0.4)])
        found = {}
        for name, used in (("signed", weights), ("absolute", weights.abs())):
            model = location()
            fit(model, data, used, epochs=30, learning_rate=0.05, weight_decay=0.0)
            found[name] = model.mu.item()
        expected = float((weights * data[:, 0]).sum() / weights.sum())
        # The weighted mean of the 200 held-out events has an error of sqrt(sum((w (x - mean))**2)) / sum(w) = 0.12.
        assert found["signed"] == pytest.approx(expected, abs=0.25)
        assert found["absolute"] > expected + 0.75

    def test_the_validation_loss_is_weighted(self, location, fit):
        data, weights = normal(100, 1), torch.exp(normal(100, seed=1)).float()
        model = location()
        record = fit(model, torch.cat([data, weights.unsqueeze(-1)], 1), weights, epochs=1, ema=0.0, batch_size=FULL)
        rows = model.rows(False)
        each = 0.5 * ((rows - model.mu.detach()) ** 2).sum(-1)
        assert record.validation_loss[0] == pytest.approx(float((rows[:, 1] * each).sum() / rows[:, 1].sum()), rel=1e-5)

    @pytest.mark.parametrize(
        ("weights", "error", "message"),
        [
            (torch.ones(9), ShapeError, r"weights: expected shape \(20,\), got \(9,\)"),
            (torch.ones(20, 1), ShapeError, r"weights: expected shape \(20,\), got \(20, 1\)"),
            (torch.full((20,), torch.nan), NonFiniteError, "weights: expected finite numbers"),
            (torch.zeros(20), UsageError, "weights: expected a positive sum, got 0"),
            (-torch.ones(20), UsageError, "weights: expected a positive sum.*too many negative weights"),
        ],
    )
    def test_wrong_weights(self, weights, error, message, location, fit):
        with pytest.raises(error, match=message):
            fit(location(), normal(20, 1), weights)


class TestSplit:
    @pytest.mark.parametrize(("n", "held_out"), [(2, 1), (3, 1), (100, 10), (100, 99)])
    def test_every_event_is_on_one_side(self, n, held_out, split):
        training, validation = split(n, held_out)
        assert len(validation) == held_out
        assert torch.equal(torch.cat([training, validation]).sort().values, torch.arange(n))

    def test_the_seed_decides(self, split):
        assert torch.equal(split(100, 10, seed=3)[1], split(100, 10, seed=3)[1])
        assert not torch.equal(split(100, 10, seed=3)[1], split(100, 10, seed=4)[1])

    def test_held_out_events_are_never_trained_on(self, location, fit):
        model = location()
        fit(model, torch.arange(100.0).unsqueeze(-1), epochs=5, batch_size=8)
        assert not set(model.rows(True).flatten().tolist()) & set(model.rows(False).flatten().tolist())

    def test_each_epoch_is_shuffled_anew_and_repeats_no_event(self, location, fit):
        model = location()
        fit(model, torch.arange(100.0).unsqueeze(-1), epochs=2, batch_size=8)
        first, second = model.rows(True).reshape(2, 11 * 8)
        assert len(first.unique()) == len(second.unique()) == 88
        assert not torch.equal(first, second)


class TestSchedules:
    """Adam moves a weight with a constant gradient by the learning rate at each step."""

    class Slide(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.zeros((), dtype=torch.float64))
            self.path = []

        def loss(self, x):
            if self.training:
                self.path.append(self.at.item())
            return -self.at.expand(len(x))

    def rates(self, fit, **settings):
        model = self.Slide()
        options = {"epochs": 10, "batch_size": 9, "ema": 0.0, "weight_decay": 0.0, **settings}
        fit(model, torch.zeros(100, 1), learning_rate=0.02, **options)
        path = torch.tensor([*model.path, model.at.item()], dtype=torch.float64)
        return path.diff() / 0.02

    @pytest.mark.parametrize("warmup", [0.1, 0.3])
    def test_one_cycle_rises_then_falls_to_nothing(self, warmup, fit):
        rates = self.rates(fit, schedule="one-cycle", warmup=warmup)
        peak = round(warmup * 100)
        assert len(rates) == 100
        assert rates[0] == pytest.approx(0.04, rel=1e-3)
        assert rates[peak] == pytest.approx(1.0, rel=1e-3)
        assert (rates[: peak + 1].diff() > 0).all()
        assert (rates[peak:].diff() < 0).all()
        assert rates[(100 + peak) // 2] == pytest.approx(0.5, rel=1e-2)
        assert 0 < rates[-1] < 2e-3

    def test_cosine_falls_from_the_start(self, fit):
        rates = self.rates(fit, schedule="cosine")
        expected = 0.5 * (1 + torch.cos(math.pi * torch.arange(100) / 100))
        torch.testing.assert_close(rates, expected.double(), rtol=0, atol=1e-4)

    def test_constant(self, fit):
        torch.testing.assert_close(self.rates(fit, schedule="constant"), torch.ones(100).double(), rtol=1e-6, atol=0)


class TestAverage:
    def runs(self, location, fit, **settings):
        """The same path of the weight, once kept as it is and once averaged."""
        models = []
        for ema in (0.0, 0.9):
            models.append(location())
            data = torch.cat([normal(180, 1), normal(20, 1, seed=1)])
            fit(models[-1], data, ema=ema, batch_size=20, schedule="constant", learning_rate=0.05, **settings)
        return models

    def test_the_average_is_that_of_the_path(self, location, fit):
        plain, averaged = self.runs(location, fit, epochs=1)
        training = [mu.item() for mode, _, mu in plain.seen if mode]
        path = [*training[1:], plain.mu.item()]
        expected = training[0]
        for step, value in enumerate(path, 1):
            decay = min(0.9, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * value
        assert averaged.mu.item() == pytest.approx(expected, rel=1e-12)
        assert [mu for mode, _, mu in averaged.seen if mode] == [mu for mode, _, mu in plain.seen if mode]

    def test_the_average_is_what_is_validated(self, location, fit):
        plain, averaged = self.runs(location, fit, epochs=1)
        for model in (plain, averaged):
            assert [mu for mode, _, mu in model.seen if not mode] == [model.mu.detach()]
        assert plain.mu != averaged.mu

    def test_the_average_is_steadier(self, location, fit):
        plain, averaged = self.runs(location, fit, epochs=40, patience=40)
        late = [[mu.item() for mode, _, mu in model.seen if not mode][10:] for model in (plain, averaged)]
        assert torch.tensor(late[1]).std() < 0.7 * torch.tensor(late[0]).std()


class TestClipping:
    class Slope(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.slope, self.a, self.b = slope, nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))

        def loss(self, x):
            return self.slope * (0.6 * self.a + 0.8 * self.b[0]).expand(len(x))

    @pytest.mark.parametrize(("slope", "expected"), [(100.0, 2.0), (1e12, 2.0), (1.0, 1.0)])
    def test_the_norm_over_all_weights_is_bounded(self, slope, expected, fit):
        model = self.Slope(slope)
        fit(model, torch.zeros(20, 1), epochs=1, clip_norm=2.0)
        norm = torch.cat([model.a.grad, model.b.grad]).norm()
        assert norm == pytest.approx(expected, rel=1e-4)
        assert model.a.grad.item() / norm == pytest.approx(0.6, rel=1e-4)

    def test_an_outlier_does_not_stop_training(self, location, fit, arranged):
        """Without clipping its gradient fills the second moment of Adam, and the steps after it are tiny."""
        training = torch.ones(200, 1, dtype=torch.float64)
        training[0] = -1e6
        data, found = arranged(training, torch.ones(10, 1, dtype=torch.float64)), []
        for clip_norm in (1.0, 1e9):
            model = location()
            settings = {"validation_fraction": 10 / 210, "weight_decay": 0.0, "clip_norm": clip_norm}
            fit(model, data, epochs=20, batch_size=20, learning_rate=0.05, **settings)
            found.append(abs(model.mu.item() - 1))
        assert found[0] < 0.1
        assert found[1] > 0.3


class TestStopping:
    def test_the_best_state_is_restored(self, location, fit, arranged):
        """The weight walks from 0 to 5 past the 1 of the events held out."""
        data = arranged(torch.full((90, 1), 5.0).double(), torch.ones(10, 1, dtype=torch.float64))
        model = location()
        settings = {"schedule": "constant", "learning_rate": 0.05, "weight_decay": 0.0, "ema": 0.0}
        record = fit(model, data, epochs=200, patience=6, batch_size=90, **settings)
        assert record.stopped == "patience"
        assert record.best_epoch == min(range(len(record.validation_loss)), key=record.validation_loss.__getitem__)
        assert len(record.train_loss) == len(record.validation_loss) == record.best_epoch + 1 + 6
        assert model.mu.item() == pytest.approx(1.0, abs=0.03)
        with torch.no_grad():
            assert record.best_validation_loss == model.loss(model.rows(False)[:10]).mean().item()
        assert model.seen[-2][2].item() > 1.2

    def test_buffers_are_restored_too(self, network, fit, pairs):
        model = network()
        record = fit(model, pairs, epochs=60, patience=3, learning_rate=0.1, schedule="constant")
        assert record.stopped == "patience"
        assert int(model.layers[1].num_batches_tracked) == (record.best_epoch + 1) * (180 // record.batch_size)
        assert not model.training

    def test_the_clock_stops_training(self, location, fit):
        model = location()
        record = fit(model, normal(50, 1), epochs=10**6, patience=10**6, max_seconds=0.2)
        assert record.stopped == "seconds"
        assert 0.2 <= record.seconds < 5
        assert record.best_validation_loss == min(record.validation_loss)


class TestNonFinite:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_of_the_loss(self, value, location, fit):
        class Breaks(location):
            def loss(self, x):
                late = self.training and sum(mode for mode, *_ in self.seen) >= 3
                return super().loss(x) * (value if late else 1.0)

        with pytest.raises(TrainingError) as caught:
            fit(Breaks(), normal(50, 1), batch_size=FULL, epochs=10, learning_rate=0.125)
        message = str(caught.value)
        assert "became" in message
        assert "in epoch 3;" in message
        assert "look for extreme or constant values in the data, or lower the learning rate (now 0.125)" in message
        assert "\n" not in message

    def test_of_the_gradient_alone(self, fit):
        class Root(nn.Module):
            def __init__(self):
                super().__init__()
                self.at = nn.Parameter(torch.zeros(1))

            def loss(self, x):
                return torch.sqrt(self.at.abs()).expand(len(x))

        with pytest.raises(TrainingError, match="the loss or its gradient became nan in epoch 0"):
            fit(Root(), torch.zeros(20, 1))

    def test_of_the_validation_alone(self, location, fit, arranged):
        data = arranged(normal(90, 1), torch.full((10, 1), torch.nan, dtype=torch.float64))
        with pytest.raises(TrainingError, match="the validation loss is nan after epoch 0; look for extreme values"):
            fit(location(), data)

    def test_of_the_data(self, network, fit, pairs):
        pairs[0][:, 1] = torch.inf
        with pytest.raises(TrainingError, match="in epoch 0"):
            fit(network(), pairs)


class TestMistakes:
    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            ([], UsageError, "data: expected at least one tensor, got none"),
            ([torch.zeros(1, 1)], ShapeError, "data: expected at least 2 events, got 1"),
            ([torch.zeros(0, 1)], ShapeError, "data: expected at least 2 events, got 0"),
            ([torch.zeros(5, 1), torch.zeros(4)], ShapeError, "equally many rows, got tensor 0: 5, tensor 1: 4"),
        ],
    )
    def test_wrong_data(self, data, error, message, location, fit):
        with pytest.raises(error, match=message):
            fit(location(), data)

    @pytest.mark.parametrize(
        "shape", [lambda each: each.mean(), lambda each: each.unsqueeze(-1), lambda each: each[:-1]]
    )
    @pytest.mark.parametrize("weights", [None, torch.ones(20)])
    def test_a_loss_that_is_not_one_number_for_each_event(self, shape, weights, location, fit):
        """A column of losses would broadcast against the weights and lose them."""

        class Odd(location):
            def loss(self, x):
                return shape(super().loss(x))

        with pytest.raises(ShapeError, match=r"loss: expected shape \(18,\), one number for each event, got \("):
            fit(Odd(), normal(20, 1), weights)

    @pytest.mark.parametrize("frozen", [True, False])
    def test_nothing_to_train(self, frozen):
        model = nn.Linear(1, 1).requires_grad_(False) if frozen else nn.Identity()
        with pytest.raises(UsageError, match="model: expected parameters to train, got none"):
            train(model, lambda x: x[:, 0], [torch.zeros(20, 1)], progress=False)


class TestReproducibility:
    def bits(self, model):
        return [tensor.clone() for tensor in model.state_dict().values()]

    def test_same_seed_same_bits(self, network, fit, pairs):
        """With dropout, batch normalisation and weights, whatever the global generator does."""
        results = []
        for seed, noise in ((3, 1), (3, 2), (4, 1)):
            model = network()
            with torch.random.fork_rng():
                torch.manual_seed(noise)
                record = fit(model, pairs, torch.ones(200), seed=seed, epochs=3)
            results.append((self.bits(model), record.train_loss, record.validation_loss))
        first, again, other = results
        assert first[1:] == again[1:]
        assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))
        assert first[1] != other[1]

    @pytest.mark.parametrize("fails", [False, True])
    def test_global_settings_are_left_alone(self, fails, network, fit, pairs):
        if fails:
            pairs[0][0] = torch.nan
        state, dtype, threads = torch.random.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
        try:
            fit(network(), pairs, epochs=2)
        except TrainingError:
            assert fails
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.get_default_dtype() == dtype
        assert torch.get_num_threads() == threads
        assert torch.is_grad_enabled()

    def test_the_data_and_frozen_weights_are_left_alone(self, network, fit, pairs):
        before, model = copy.deepcopy(pairs), network()
        fit(model, pairs, epochs=2)
        assert all(torch.equal(a, b) for a, b in zip(before, pairs, strict=True))
        assert model.frozen.item() == 1.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("progress", "terminal"), [(False, True), (True, False), (True, True)])
def test_only_a_terminal_is_shown_progress(progress, terminal, location, monkeypatch, capfd):
    error = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    model = location()
    train(model, model.loss, [normal(50, 1)], config=TrainConfig(epochs=2), progress=progress, description="fitting")
    assert capfd.readouterr() == ("", "")
    assert ("fitting" in error.getvalue()) == (progress and terminal)
    assert bool(error.getvalue()) == (progress and terminal)


class TestGradientsOfOnesOwn:
    def test_they_replace_automatic_differentiation(self, network, pairs):
        """A gradient by hand gives the training that automatic differentiation gives."""
        weights = 0.5 + torch.rand(200, generator=torch.Generator().manual_seed(1))

        def fit(model, gradient):
            config = TrainConfig(epochs=3, batch_size=32)
            return train(model, model.loss, pairs, gradient=gradient, weights=weights, config=config, progress=False)

        plain, by_hand = network(), network()

        def gradient(weights, x, y):
            each = by_hand.loss(x, y)
            used = [p for p in by_hand.parameters() if p.requires_grad]
            for p, g in zip(used, torch.autograd.grad(weights @ each, used), strict=True):
                p.grad += g
            return each.detach()

        assert fit(plain, None).train_loss == pytest.approx(fit(by_hand, gradient).train_loss, rel=1e-6)


class TestMixedPrecision:
    def test_the_fit_is_that_of_single_precision(self):
        """Only the networks are in half precision: the log-density moves by less than it scatters between seeds."""
        data = torch.stack([normal(4000), normal(4000, seed=1)], 1).float()
        data[:, 1] += data[:, 0] ** 2
        losses = {}
        for precision in ("32-true", "bf16-mixed"):
            density = FlowDensity(build_flow("nsf", 2, None, transforms=2), (2,), engine="eager").fit_scaling(data)
            config = TrainConfig(epochs=5, precision=precision)
            losses[precision] = train(
                density, density.loss, [density.encode(data)[0]], config=config, progress=False
            ).validation_loss
        assert losses["bf16-mixed"] != losses["32-true"]
        assert losses["bf16-mixed"][-1] == pytest.approx(losses["32-true"][-1], abs=0.05)
