"""Median C2ST over ten observations as published by Lueckmann et al. 2021 (arXiv:2101.04653)."""

__all__ = ["PUBLISHED"]

# Simulations, method, task.
PUBLISHED: dict[int, dict[str, dict[str, float]]] = {
    1_000: {
        "NLE": {"two_moons": 0.789, "slcp": 0.954, "gaussian_linear_uniform": 0.714, "sir": 0.740},
        "SNLE": {"two_moons": 0.660, "slcp": 0.914, "gaussian_linear_uniform": 0.656, "sir": 0.749},
        "NPE": {"two_moons": 0.715, "slcp": 0.973, "gaussian_linear_uniform": 0.682, "sir": 0.808},
        "SNPE": {"two_moons": 0.639, "slcp": 0.960, "gaussian_linear_uniform": 0.632, "sir": 0.618},
        "SNRE": {"two_moons": 0.652, "slcp": 0.976, "gaussian_linear_uniform": 0.679, "sir": 0.608},
    },
    10_000: {
        "NLE": {"two_moons": 0.693, "slcp": 0.756, "gaussian_linear_uniform": 0.543, "sir": 0.748},
        "SNLE": {"two_moons": 0.562, "slcp": 0.703, "gaussian_linear_uniform": 0.555, "sir": 0.695},
        "NPE": {"two_moons": 0.608, "slcp": 0.907, "gaussian_linear_uniform": 0.554, "sir": 0.630},
        "SNPE": {"two_moons": 0.552, "slcp": 0.841, "gaussian_linear_uniform": 0.525, "sir": 0.556},
        "SNRE": {"two_moons": 0.582, "slcp": 0.914, "gaussian_linear_uniform": 0.600, "sir": 0.658},
    },
    100_000: {
        "NLE": {"two_moons": 0.641, "slcp": 0.691, "gaussian_linear_uniform": 0.506, "sir": 0.715},
        "SNLE": {"two_moons": 0.540, "slcp": 0.566, "gaussian_linear_uniform": 0.509, "sir": 0.648},
        "NPE": {"two_moons": 0.542, "slcp": 0.819, "gaussian_linear_uniform": 0.508, "sir": 0.568},
        "SNPE": {"two_moons": 0.522, "slcp": 0.670, "gaussian_linear_uniform": 0.507, "sir": 0.546},
        "SNRE": {"two_moons": 0.560, "slcp": 0.727, "gaussian_linear_uniform": 0.542, "sir": 0.542},
    },
}
