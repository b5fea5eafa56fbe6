"""Restricted Boltzmann machines against sums over all states, and trained on the Ising model."""

import itertools
import math

import pytest
import torch

from sbi_physics.core.errors import ShapeError, UsageError
from sbi_physics.core.protocols import Generator
from sbi_physics.models.boltzmann import RestrictedBoltzmannMachine
from sbi_physics.train.boltzmann import train_boltzmann
from sbi_physics.train.config import TrainConfig
from simulators.ising import IsingModel, enumerate_states, spin_energy, spin_magnetisation

SHORT = {"epochs": 3, "batch_size": 100, "checkpoint_seconds": 0.0, "optimizer": "adamw"}


def build(visible=5, hidden=3, scale=0.5, kind=RestrictedBoltzmannMachine, **options):
    """A machine of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        machine = kind(visible, hidden, **options)
        with torch.no_grad():
            for weight in machine.parameters():
                weight.copy_(scale * torch.randn_like(weight))
    return machine.double().eval()


def all_states(units, n):
    low = -1.0 if units == "spin" else 0.0
    return torch.tensor(list(itertools.product([low, 1.0], repeat=n)), dtype=torch.float64)


@pytest.fixture(params=["spin", "binary"])
def units(request):
    return request.param


def exact_probabilities(machine):
    """Of all visible states, from the joint probability of both layers."""
    v, h = (all_states(machine.units, n) for n in (machine.visible, machine.hidden))
    a, b, weight = machine.visible_bias.detach(), machine.hidden_bias.detach(), machine.weight.detach()
    joint = (v @ a).unsqueeze(-1) + h @ b + v @ weight @ h.T
    return v, joint.double()


def test_the_free_energy_and_z_are_sums_over_the_hidden_states(units):
    machine = build(units=units)
    v, joint = exact_probabilities(machine)
    torch.testing.assert_close(-machine.free_energy(v).detach().double(), joint.logsumexp(-1))
    for wide in (machine, build(3, 5, units=units)):
        total = float(exact_probabilities(wide)[1].logsumexp((0, 1)))
        assert wide.log_partition().value == pytest.approx(total, abs=1e-10)
    # The loss of validation is then a normalised log-probability.
    assert float((-machine.loss(v)).exp().sum().detach()) == pytest.approx(1.0, abs=1e-10)


def test_gibbs_sampling_draws_from_the_machine(units):
    n, machine = 20_000, build(units=units)
    _, joint = exact_probabilities(machine)
    expected = joint.logsumexp(-1).softmax(0)
    draws = machine.sample(n, steps=50, seed=1)
    assert isinstance(machine, Generator)
    assert draws.shape == (n, 5)
    up = (draws > 0).long()
    counts = torch.bincount((up * 2 ** torch.arange(4, -1, -1)).sum(-1), minlength=32)
    pull = (counts - n * expected) / (n * expected * (1 - expected)).sqrt()
    assert float(pull.abs().max()) < 4.5
    assert float(((counts - n / 32) / (n / 32) ** 0.5).abs().max()) > 10
    assert draws.numpy().tobytes() == machine.sample(n, steps=50, seed=1).numpy().tobytes()


def test_annealed_importance_sampling_agrees_with_the_sum(units):
    machine = build(12, 10, scale=0.4, units=units)
    exact, found = machine.log_partition(), machine.annealed_log_partition(chains=400, temperatures=300, seed=0)
    assert exact.error == 0
    assert 0 < found.error < 0.1
    assert abs(found.value - exact.value) < 5 * found.error
    assert found.effective_sample_size > 100
    assert found == machine.annealed_log_partition(chains=400, temperatures=300, seed=0)
    # Without annealing the weights are those of the uniform distribution: far worse.
    assert machine.annealed_log_partition(chains=400, temperatures=1, seed=0).effective_sample_size < 100


@pytest.mark.parametrize("persistent", [True, False])
def test_the_gradient_is_that_of_the_likelihood(persistent):
    """Contrastive divergence with long chains, against the gradient of the exact log-likelihood."""
    machine = build(persistent=persistent, steps=60, scale=0.3).train()
    generator = torch.Generator().manual_seed(0)
    data = (torch.rand(40_000, 5, generator=generator) < 0.7).double() * 2 - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        machine.start_chains(40_000)
        machine.loss(data).mean().backward()
    found = machine.weight.grad.clone()
    machine.zero_grad()
    v, _ = exact_probabilities(machine)
    (machine.free_energy(data).mean() + (-machine.free_energy(v)).logsumexp(0)).backward()
    # A product of spins has a variance below one, in the data and in the chains.
    assert float((found - machine.weight.grad).abs().max()) < 5 * (1 / 40_000) ** 0.5
    assert float(machine.weight.grad.abs().max()) > 0.1


def test_the_pseudo_likelihood_is_made_of_conditional_probabilities(units):
    """ln p(v_i | all other v), here from the probabilities of all states."""
    machine = build(units=units)
    v, joint = exact_probabilities(machine)
    log_p = joint.logsumexp(-1)
    flipped = [log_p[torch.arange(32) ^ (1 << i)] for i in range(5)]
    expected = sum(torch.logaddexp(log_p, other) - log_p for other in flipped)
    torch.testing.assert_close(machine.pseudo_likelihood_loss(v).detach().double(), expected)


def test_without_biases_a_flip_changes_nothing():
    machine = RestrictedBoltzmannMachine(6, 4, biases=False).double()
    v = all_states("spin", 6)
    torch.testing.assert_close(machine.free_energy(v), machine.free_energy(-v))
    train_boltzmann(machine, v.repeat(20, 1), chains=32, config=TrainConfig(**SHORT), progress=False)
    assert float(machine.visible_bias.abs().max()) == 0
    torch.testing.assert_close(machine.free_energy(v), machine.free_energy(-v))


def test_same_seed_same_bytes_and_an_interrupted_run_goes_on_exactly(tmp_path):
    class Interrupted(Exception):
        pass

    class Ends(RestrictedBoltzmannMachine):
        calls = 0

        def loss(self, v):
            self.calls += 1
            if self.calls == 10:
                raise Interrupted
            return super().loss(v)

    v = build().sample(500, steps=20, seed=0)

    def fit(machine, checkpoint=None):
        config = TrainConfig(**SHORT)
        train_boltzmann(machine, v, chains=64, config=config, checkpoint=checkpoint, progress=False)
        return machine.state_dict()

    path = tmp_path / "run.ckpt"
    first, second = fit(build(scale=0.1)), fit(build(scale=0.1))
    with pytest.raises(Interrupted):
        fit(build(scale=0.1, kind=Ends), path)
    assert path.exists()
    third = fit(build(scale=0.1), path)
    assert all(torch.equal(value, second[name]) and torch.equal(value, third[name]) for name, value in first.items())
    assert first["chains"].shape == (0, 5)


def test_wrong_use_is_named():
    with pytest.raises(UsageError, match="units: expected one of binary, spin"):
        build(units="potts")
    with pytest.raises(ShapeError, match=r"v: expected shape \(\*, 5\)"):
        build().free_energy(torch.ones(3, 4))
    with pytest.raises(ShapeError, match="context: this model is unconditional"):
        build().sample(3, torch.ones(1))
    with pytest.raises(UsageError, match="expected a layer of at most 22 units, got 30 and 25"):
        build(30, 25).log_partition()
    with pytest.raises(UsageError, match="chains: expected start_chains"):
        build().train().loss(torch.ones(3, 5))
    with pytest.raises(UsageError, match="v: expected units of -1 and 1, got 0"):
        train_boltzmann(build(), torch.zeros(50, 5))


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.8, 2.27, 3.5])
def test_trained_on_the_ising_model_it_has_the_exact_moments(temperature):
    """Energy and |m| of draws within three standard errors: those of the draws and of the training sample together."""
    n, states = 10_000, enumerate_states(4)
    energies, sizes = spin_energy(states), spin_magnetisation(states).abs()
    weights = (-16 * energies / temperature).softmax(0)
    x = IsingModel(4, sweeps=100)(torch.full((n, 1), temperature), seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        machine = RestrictedBoltzmannMachine(16, 32, steps=3, biases=False)
    settings = {"learning_rate": 1e-2, "weight_decay": 0.0, "schedule": "cosine", "ema": 0.995, "patience": 45}
    config = TrainConfig(epochs=45, batch_size=128, optimizer="adamw", **settings)
    train_boltzmann(machine, x, chains=512, config=config, progress=False)
    draws = machine.sample(n, steps=300, seed=3).double()
    for values, exact in ((spin_energy(draws), energies), (spin_magnetisation(draws).abs(), sizes)):
        mean = weights @ exact
        deviation = (weights @ exact.square() - mean**2).sqrt()
        assert abs(float((values.mean() - mean) / deviation)) < 3 * math.sqrt(2 / n)
