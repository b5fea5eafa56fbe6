"""Export a trained surrogate to ONNX, so that a simulation framework in C++ can call it; see docs/export.md.

The file is a function of single-precision numbers, whose first dimension is a batch of any size n:

==========  ===========  ==============  ==============================================================================
``theta``   input        ``(n, P)``      the parameters, in the order and the units that the metadata name
``noise``   input        ``(n, K)``      independent standard normal numbers: all the randomness that there is
``x``       output       ``(n, *x)``     one draw for each row
==========  ===========  ==============  ==============================================================================

Preprocessing, all stages and the way back to outputs are inside.  Loops (the solver of a diffusion model, the numbers
of an autoregressive one) stay loops.  Whether theta is within the prior is for the caller to see to.
"""

import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sbi_physics import __version__
from sbi_physics.core.checks import positive_integer
from sbi_physics.core.errors import StoreError, UsageError
from sbi_physics.core.parameters import Parameters
from sbi_physics.core.random import check_seed, derive, seeded
from sbi_physics.models.flows.density import FlowDensity
from sbi_physics.models.flows.linear import multiply_out
from sbi_physics.store.atomic import atomic_path
from sbi_physics.surrogate.chain import ModelChain

__all__ = ["Agreement", "compare_onnx", "export_onnx"]

# Rows that are followed through the models; 0 and 1 would be taken as fixed.
_ROWS = 3
_TOLERANCE = 1e-4


class Agreement(NamedTuple):
    """How the outputs of an exported file compare with those of the surrogate at the same theta and noise.

    Attributes:
        rows: outputs compared.
        numbers: numbers in all of them.
        differing: numbers that differ by more than 1e-4 of the larger of themselves and the mean size of the numbers
            of their output: where rounding takes one across a threshold.
        largest: the largest such difference of the others.
    """

    rows: int
    numbers: int
    differing: int
    largest: float


class _Function(nn.Module):
    """The forward pass that is exported."""

    def __init__(self, chain: ModelChain) -> None:
        super().__init__()
        self.chain = chain

    def forward(self, theta: Tensor, noise: Tensor) -> Tensor:
        return self.chain.from_noise(theta, noise)


def export_onnx(chain: ModelChain, parameters: Parameters, model: str, path: str | Path) -> None:
    """Write a trained surrogate as a function of theta and noise to an ONNX file.

    Args:
        chain: trained; of any model but ``"energy"``, ``"kernel"`` and ``"recurrent"``.
        parameters: of theta.
        model: name of the last model, for whoever reads the file.
        path: the file.

    Raises:
        UsageError: the extra ``export`` is not installed, or a model draws in a way that is no function of a fixed
            number of normal numbers.
        StoreError: the file cannot be written.
    """
    function = _Function(_prepared(chain))
    features = sum(function.chain.noise_features)
    onnx = _module("onnx")
    _module("onnxscript")
    with atomic_path(Path(path)) as temporary:
        made = _followed(function, len(parameters), features)
        made.producer_name, made.producer_version = "sbi_physics", __version__
        shape = list(chain.preprocessing.x_shape)
        onnx.helper.set_model_props(made, _metadata(parameters, model, shape, features))
        onnx.save_model(made, str(temporary))


def _followed(function: _Function, parameters: int, features: int) -> Any:
    """The ONNX model of what is done to an example, for any number of rows."""
    example = (torch.ones(_ROWS, parameters), torch.zeros(_ROWS, features))
    rows = {0: torch.export.Dim("n", min=1)}
    with torch.no_grad(), _silence():
        names: dict[str, Any] = {"input_names": ["theta", "noise"], "output_names": ["x"]}
        made = torch.onnx.export(function, example, dynamo=True, dynamic_shapes={"theta": rows, "noise": rows}, **names)
    model: Any = made.model_proto  # type: ignore[union-attr]
    for graph in (model.graph, *model.functions):
        _tidy(graph)
    return model


def compare_onnx(
    chain: ModelChain, parameters: Parameters, path: str | Path, *, n: int = 1000, seed: int = 0
) -> Agreement:
    """Run an exported file in onnxruntime, and the surrogate on the same theta, from the prior, and noise.

    Args:
        chain: of the surrogate that was exported.
        parameters: of theta.
        path: the file.
        n: rows.
        seed: of theta and noise.

    Raises:
        UsageError: the extra ``export`` is not installed.
        StoreError: the file cannot be read, or is not of such a surrogate.
    """
    runtime = _module("onnxruntime")
    theta = parameters.sample(positive_integer(n, "n"), seed=derive(check_seed(seed), "theta")).float()
    with seeded(derive(seed, "noise")):
        noise = torch.randn(n, sum(chain.noise_features))
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (found,) = session.run(["x"], {"theta": theta.numpy(), "noise": noise.numpy()})
    except Exception as error:  # its exceptions have no common root but this one
        words = " ".join(str(error).split())[:300]
        raise StoreError(f"{path}: expected the exported file of this surrogate: {words}") from error
    expected = chain.from_noise(theta.to(chain.device), noise.to(chain.device)).cpu().flatten(1).double()
    difference = (torch.from_numpy(found).flatten(1).double() - expected).abs()
    relative = difference / torch.maximum(expected.abs(), expected.abs().mean(1, keepdim=True)).clamp(min=1e-30)
    same = relative <= _TOLERANCE
    largest = float(torch.where(same, relative, 0.0).max())
    return Agreement(n, same.numel(), int((~same).sum()), largest)


def _prepared(chain: ModelChain) -> ModelChain:
    """A copy of operations that ONNX has, on the CPU."""
    if any(isinstance(module, nn.RNNBase) for module in chain.modules()):
        raise UsageError("export: torch exports no recurrent network inside a loop; expected another model, as 'made'")
    chain = copy.deepcopy(chain).cpu().eval()
    for model in chain.stages:
        if isinstance(model, FlowDensity):
            model.engine = "eager"
    multiply_out(chain)
    return chain


def _metadata(parameters: Parameters, model: str, x_shape: list[int], features: int) -> dict[str, str]:
    """What a caller has to know, as texts; lists are JSON."""
    described = parameters.to_dict()
    return {
        "sbi_physics_version": __version__,
        "model": model,
        "parameters": json.dumps(described["names"]),
        "units": json.dumps(described["units"]),
        "bounds": json.dumps(described["bounds"]),
        "x_shape": json.dumps(x_shape),
        "noise": "standard normal",
        "noise_features": str(features),
    }


def _tidy(graph: Any) -> None:
    """Leave out where in the source each node comes from, and weights that no node reads."""
    used = set()
    for inner in _graphs(graph):
        inner.ClearField("doc_string")
        inner.ClearField("metadata_props")
        used |= {value.name for value in inner.output} if hasattr(inner, "initializer") else set(inner.output)
        for value in inner.value_info:
            value.ClearField("metadata_props")
        for node in inner.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
            used |= set(node.input)
    for inner in _graphs(graph):
        if hasattr(inner, "initializer"):
            kept = [weight for weight in inner.initializer if weight.name in used]
            inner.ClearField("initializer")
            inner.initializer.extend(kept)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph or function, and all graphs inside."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"export needs the package {name}: pip install 'sbi-physics[export]'") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what the exporter says to its developers from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
