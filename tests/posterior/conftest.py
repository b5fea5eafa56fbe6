import pytest

import sbi_physics as sp
from sbi_physics.train.config import TrainConfig
from simulators.gaussian_linear import GaussianLinear, GaussianLinearUniform


@pytest.fixture(scope="session")
def quick():
    """A small network and a short training: what is tested is how a posterior is used, not how good it is."""
    return {"transforms": 1, "hidden_features": 8, "blocks": 1, "config": TrainConfig(epochs=1), "augment": False}


@pytest.fixture(scope="session")
def gaussian():
    return GaussianLinear(dims=2)


@pytest.fixture(scope="session")
def gaussian_pairs(gaussian):
    return sp.simulate(gaussian, 4000, seed=1, workers=1, progress=False).training_set()


@pytest.fixture(scope="session")
def good(gaussian, gaussian_pairs):
    """A posterior of two parameters that is close to the exact one."""
    estimator = sp.NPE(gaussian.parameters, transforms=2, hidden_features=32, config=TrainConfig(epochs=80))
    return estimator.fit(*gaussian_pairs, seed=3, progress=False)


@pytest.fixture(scope="session")
def uniform():
    return GaussianLinearUniform(dims=2)


@pytest.fixture(scope="session")
def uniform_pairs(uniform):
    return sp.simulate(uniform, 500, seed=2, workers=1, progress=False).training_set()


@pytest.fixture(scope="session")
def crude(uniform, uniform_pairs, quick):
    """A posterior that was hardly trained, on a bounded prior."""
    return sp.NPE(uniform.parameters, **quick).fit(*uniform_pairs, progress=False)
