"""Priors in words, of every kind that the front door takes."""

from typing import ClassVar

import pytest
import torch
import torch.distributions as td

from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.run.prior_table import prior_words


class Own(td.Distribution):
    """Two numbers of a family that torch does not have."""

    arg_constraints: ClassVar[dict[str, object]] = {}
    support = td.constraints.independent(td.constraints.real, 1)

    def __init__(self):
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def sample(self, shape=torch.Size()):
        return torch.randn(*shape, 2)

    def log_prob(self, value):
        return td.Normal(0.0, 1.0).log_prob(value).sum(-1)


def test_each_parameter_has_its_family_and_numbers():
    parameters = Parameters([Parameter("a", td.Uniform(-0.5, 2.0)), Parameter("b", LogUniform(1e-3, 10.0))])
    assert prior_words(parameters) == ["Uniform(low -0.5, high 2)", "LogUniform(low 0.001, high 10)"]


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (
            td.Independent(td.Uniform(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0])), 1),
            ["Uniform(low 0, high 2)", "Uniform(low 1, high 3)"],
        ),
        (td.MultivariateNormal(torch.zeros(2), torch.eye(2)), ["MultivariateNormal, of all parameters together"] * 2),
        (Own(), ["Own, of all parameters together"] * 2),
    ],
)
def test_joint_priors(prior, words):
    assert prior_words(Parameters.from_prior(prior)) == words
