"""What the tests of integrals share: a product of Gauss-Legendre rules on the unit cube."""

import numpy as np
import pytest
import torch


def gauss_cube(*orders):
    """Nodes ``(N, d)`` and weights ``(N,)``, exact for polynomials of degree 2 k - 1 in the variable of order k."""
    rules = [np.polynomial.legendre.leggauss(order) for order in orders]
    nodes = [torch.tensor((x + 1) / 2) for x, _ in rules]
    weights = [torch.tensor(w / 2) for _, w in rules]
    return (
        torch.cartesian_prod(*nodes).reshape(-1, len(orders)),
        torch.cartesian_prod(*weights).reshape(-1, len(orders)).prod(-1),
    )


@pytest.fixture(scope="session")
def gauss():
    return gauss_cube
