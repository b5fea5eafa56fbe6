"""Random streams: the same seed gives the same numbers, whatever ran before, and nothing else is disturbed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sbi_physics.core.errors import UsageError
from sbi_physics.core.random import check_seed, derive, numpy_generator, seeded

SEEDS = st.integers(0, 2**63 - 1)


@given(seed=SEEDS, path=st.lists(st.one_of(st.integers(0, 2**31), st.text(max_size=8)), max_size=3))
def test_derived_seeds_are_seeds_and_depend_on_nothing_else(seed, path):
    first = derive(seed, *path)
    derive(seed + 1 if seed < 2**63 - 1 else 0, "between")
    torch.rand(1)
    assert derive(seed, *path) == first
    assert check_seed(first) == first


def test_derived_seeds_do_not_collide():
    paths = [(), ("a",), ("b",), (0,), (1,), ("a", 0), ("a", 1), (0, "a"), (0, 0), (0, 1), (1, 0)]
    seeds = [derive(seed, *path) for seed in range(50) for path in paths]
    assert len(set(seeds)) == len(seeds)
    assert len({derive(3, i) for i in range(10_000)}) == 10_000


def test_derived_seeds_are_those_of_earlier_versions():
    """Stored results depend on them."""
    assert derive(0, "posterior") == 5809951256332662927
    assert derive(1, "block", 3) == 1625088230442075211


def test_the_order_of_execution_does_not_matter():
    def draw(i):
        with seeded(derive(7, "block", i)):
            return torch.randn(3)

    forward = {i: draw(i) for i in range(5)}
    backward = {i: draw(i) for i in reversed(range(5))}
    assert all(torch.equal(forward[i], backward[i]) for i in range(5))


def test_seeded_restores_the_global_state():
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with seeded(3):
        first = torch.randn(4)
    with seeded(3):
        second = torch.randn(4)
    with pytest.raises(ZeroDivisionError), seeded(3):
        1 / int(torch.zeros(1))
    numpy_generator(3).normal()
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_without_a_seed_the_global_stream_moves():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with seeded(None):
            first = torch.randn(2)
        torch.manual_seed(1)
        assert torch.equal(first, torch.randn(2))


def test_numpy_generator_repeats():
    assert numpy_generator(5).integers(1 << 40) == numpy_generator(5).integers(1 << 40)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", None, True])
def test_wrong_seeds_are_named(seed):
    for use in (check_seed, derive, numpy_generator):
        with pytest.raises(UsageError, match=r"seed: expected an integer in \[0, 2\*\*63\)"):
            use(seed)
    assert check_seed(np.int64(3)) == 3
