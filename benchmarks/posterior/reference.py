"""Observations and reference posteriors of sbibm (Lueckmann et al. 2021, arXiv:2101.04653).

They are read from the files of the package sbibm, which is installed without its dependencies and never imported.
"""

import bz2
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["observation", "reference_samples"]


def _folder(task: str, number: int) -> Path:
    spec = importlib.util.find_spec("sbibm")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark reads the reference posteriors of sbibm: pip install --no-deps sbibm==1.1.0")
    return Path(spec.origin).parent / "tasks" / task / "files" / f"num_observation_{number}"


def observation(task: str, number: int) -> Tensor:
    """The observation of a task, from 1 to 10: float32 ``(x_dims,)``."""
    values = np.loadtxt(_folder(task, number) / "observation.csv", delimiter=",", skiprows=1)
    return torch.tensor(values, dtype=torch.float32).reshape(-1)


def reference_samples(task: str, number: int) -> Tensor:
    """Reference posterior draws of an observation: float32 ``(10000, P)``."""
    with bz2.open(_folder(task, number) / "reference_posterior_samples.csv.bz2", "rt") as file:
        return torch.tensor(np.loadtxt(file, delimiter=",", skiprows=1), dtype=torch.float32)
