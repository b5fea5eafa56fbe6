"""The file that describes a program as a simulator, in TOML.

    command = ["./decay", "--rate", "{rate}", "--seed", "{seed}"]
    timeout = 10                               # seconds of one run
    memory_limit = "500 MB"

    [[parameters]]
    name = "rate"
    unit = "1 / s"
    prior = { family = "Uniform", low = 0.1, high = 2.0 }

    [[outputs]]
    file = "times.csv"
    columns = ["t"]

Every key is checked when the file is read, and one that is wrong is named.
"""

import inspect
import re
import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import torch.distributions as td
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from sbi_physics.core.errors import SBIPhysicsError, StoreError, UsageError
from sbi_physics.core.log_uniform import LogUniform
from sbi_physics.core.parameters import Parameter, Parameters
from sbi_physics.simulation.templates import check_places, places
from sbi_physics.store.program_outputs import FORMATS, format_of

__all__ = ["OWN_PLACES", "Description", "InputFile", "Output", "read_description"]

OWN_PLACES = ("seed", "scratch", "here")
"""Places that are no parameters: the seed of the run, the folder it runs in, and that of the description."""

_PRIORS: dict[str, Any] = {
    "Beta": td.Beta,
    "Cauchy": td.Cauchy,
    "Exponential": td.Exponential,
    "Gamma": td.Gamma,
    "HalfCauchy": td.HalfCauchy,
    "HalfNormal": td.HalfNormal,
    "Laplace": td.Laplace,
    "LogNormal": td.LogNormal,
    "LogUniform": LogUniform,
    "Normal": td.Normal,
    "Pareto": td.Pareto,
    "StudentT": td.StudentT,
    "Uniform": td.Uniform,
    "Weibull": td.Weibull,
}
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_LEAST_MEMORY = 10**6


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not match or match[2].lower() not in _UNITS:
        raise ValueError("a number of bytes, such as '500 MB'")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _inside(value: str) -> str:
    """A path that stays inside the folder that it is taken from."""
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or path == PurePosixPath("."):
        raise ValueError("the path of a file inside the folder of the run")
    return value


class ParameterEntry(_Entry):
    """One parameter: its prior is a family of `torch.distributions`, or "LogUniform", with its arguments."""

    name: str
    prior: dict[str, Any]
    unit: str = ""
    label: str = ""
    periodic: bool = False

    @field_validator("prior")
    @classmethod
    def _is_prior(cls, value: dict[str, Any]) -> dict[str, Any]:
        arguments = {key: number for key, number in value.items() if key != "family"}
        family = _PRIORS.get(str(value.get("family")))
        if family is None:
            raise ValueError(f"a family, one of {', '.join(_PRIORS)}")
        if any(isinstance(number, bool) or not isinstance(number, int | float) for number in arguments.values()):
            raise ValueError("a number for each argument of the family")
        try:
            family(**{key: float(number) for key, number in arguments.items()}, validate_args=True)
        except (TypeError, ValueError) as error:
            wanted = " and ".join(list(inspect.signature(family).parameters)[:-1])
            raise ValueError(
                f"{value['family']} with {wanted} that it takes ({' '.join(str(error).split())})"
            ) from None
        return value

    def parameter(self) -> Parameter:
        """The parameter."""
        arguments = {key: float(number) for key, number in self.prior.items() if key != "family"}
        prior = _PRIORS[self.prior["family"]](**arguments)
        return Parameter(self.name, prior, self.unit, self.label, self.periodic)


class InputFile(_Entry):
    """A file that is written anew for each run: from a `template` file beside the description, or a `text`."""

    path: Annotated[str, Field(description="in the folder of the run")]
    template: str | None = None
    text: str | None = None

    _path = field_validator("path")(_inside)

    @model_validator(mode="after")
    def _one_source(self) -> "InputFile":
        if (self.template is None) == (self.text is None):
            raise ValueError("a template (a file) or a text, one of the two")
        return self


class Output(_Entry):
    """One result: numbers in a `file`, or on standard output where none is named; see `store.program_outputs`."""

    name: str = "x"
    file: str | None = None
    format: Literal["text", "npy", "npz", "hdf5", "csv", "parquet", "root", "lhe"] | None = None
    where: str | None = None
    columns: list[str] | None = Field(default=None, min_length=1)
    shape: list[Annotated[int, Field(ge=1)]] | None = None

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not value.isidentifier():
            raise ValueError("a name of letters, digits and underscores")
        return value

    @field_validator("file")
    @classmethod
    def _is_inside(cls, value: str | None) -> str | None:
        return None if value is None else _inside(value)

    @model_validator(mode="after")
    def _known_format(self) -> "Output":
        if self.file is not None and self.kind is None:
            raise ValueError(f"a format, one of {', '.join(FORMATS)}, as the file's name does not say it")
        return self

    @property
    def kind(self) -> str | None:
        """The format."""
        return self.format or ("text" if self.file is None else format_of(self.file))


class Description(_Entry):
    """A program as a simulator.

    Attributes:
        command: the program and its arguments, in which names in braces stand for values (see `templates`): those of
            the parameters, ``{seed}``, ``{scratch}`` (the folder of the run, in which the program starts) and
            ``{here}`` (that of the description).  A program with a slash is looked for from there, one without on the
            search path.  There is no shell.
        parameters: what is varied.
        outputs: what is read; several need names.
        name: of the simulator; that of the program where empty.
        environment: variables to set, with places as in the command.
        inherit_environment: whether the program gets all other variables, too.
        inputs: files to write for each run.
        links: files beside the description to which links are made in the folder of each run.
        timeout: seconds after which a run is ended, with all that it started; None for no limit.
        memory_limit: of the address space, in bytes or as "500 MB"; None for no limit.
        failure_codes: exit codes that mean failure; all but 0 where None.  A signal always does.
        seed_bits: seeds are below two to this power.
        scratch: where folders of runs are made; None for the place of temporary files.
        keep_failed: a folder in which those of failed runs are kept, by their seeds; None removes them.
    """

    command: list[str] = Field(min_length=1)
    parameters: list[ParameterEntry] = Field(min_length=1)
    outputs: list[Output] = Field(default_factory=lambda: [Output()], min_length=1)
    name: str = ""
    environment: dict[str, str] = Field(default_factory=dict)
    inherit_environment: bool = True
    inputs: list[InputFile] = Field(default_factory=list)
    links: list[str] = Field(default_factory=list)
    timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    memory_limit: Annotated[int | None, BeforeValidator(_bytes), Field(ge=_LEAST_MEMORY)] = None
    failure_codes: list[Annotated[int, Field(ge=0, le=255)]] | None = None
    seed_bits: int = Field(default=31, ge=1, le=63)
    scratch: str | None = None
    keep_failed: str | None = None

    @field_validator("links")
    @classmethod
    def _links_inside(cls, value: list[str]) -> list[str]:
        return [_inside(link) for link in value]

    @model_validator(mode="after")
    def _consistent(self) -> "Description":
        own = [entry.name for entry in self.parameters]
        for name in own:
            if name in OWN_PLACES:
                raise ValueError(f"names of parameters other than {', '.join(OWN_PLACES)}")
        names = [output.name for output in self.outputs]
        if len(set(names)) < len(names):
            raise ValueError("a name for each of several outputs")
        return self

    def known_places(self) -> tuple[str, ...]:
        """The names that may stand in braces."""
        return (*(entry.name for entry in self.parameters), *OWN_PLACES)

    def made_parameters(self) -> Parameters:
        """Names, units and priors."""
        return Parameters([entry.parameter() for entry in self.parameters])


def read_description(source: str | Path | Mapping[str, Any], folder: Path) -> tuple[Description, dict[str, str], str]:
    """Read and check a description.

    Args:
        source: a TOML file, or what would be in one.
        folder: of the description.

    Returns:
        The description, the texts of the input files by their paths, and the program.

    Raises:
        UsageError: naming the key that is wrong, or what is missing beside the description.
        StoreError: the file cannot be read.
    """
    where = "description" if isinstance(source, Mapping) else str(source)
    content = dict(source) if isinstance(source, Mapping) else _toml(Path(source))
    try:
        description = Description.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{where}: {_complaint(error)}") from None
    try:
        description.made_parameters()
    except SBIPhysicsError as error:
        raise UsageError(f"{where}: parameters: {error}") from error
    texts = {}
    for i, entry in enumerate(description.inputs):
        texts[entry.path] = entry.text if entry.text is not None else _template(where, i, folder, str(entry.template))
    _check_texts(where, description, texts)
    for i, link in enumerate(description.links):
        if not (folder / link).exists():
            raise UsageError(f"{where}: links[{i}]: no such file: {folder / link}")
    return description, texts, _program(where, description.command[0], folder)


def _toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StoreError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not a TOML file: {' '.join(str(error).split())}") from error


def _template(where: str, i: int, folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{where}: inputs[{i}].template: cannot be read: {error}") from error


def _check_texts(where: str, description: Description, texts: Mapping[str, str]) -> None:
    """Refuse places that are not known, and parameters that are passed nowhere."""
    named = {
        **{f"command[{i}]": text for i, text in enumerate(description.command)},
        **{f"environment.{key}": text for key, text in description.environment.items()},
        **{f"inputs ({path})": text for path, text in texts.items()},
    }
    used = set()
    for key, text in named.items():
        try:
            check_places(text, description.known_places())
        except UsageError as error:
            raise UsageError(f"{where}: {key}: {error}") from None
        used.update(places(text))
    for i, entry in enumerate(description.parameters):
        if entry.name not in used:
            raise UsageError(
                f"{where}: parameters[{i}].name: expected {{{entry.name}}} in the command, the environment or an "
                "input file; it is passed nowhere"
            )


def _program(where: str, name: str, folder: Path) -> str:
    local = (folder / name).resolve() if "/" in name and not name.startswith("{") else None
    if name.startswith("{here}"):
        local = (folder / name.removeprefix("{here}").lstrip("/")).resolve()
    found = shutil.which(name if local is None else local)
    if found is None:
        raise UsageError(f"{where}: command[0]: expected a program that can be run, got {name!r}")
    return str(found)


def _complaint(error: ValidationError) -> str:
    """The first thing that is wrong, by its key."""
    first = error.errors(include_url=False)[0]
    key = ""
    for part in first["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else str(part)
    given = first.get("input")
    kind = first["type"]
    if kind == "missing":
        return f"{key}: is missing"
    if kind == "extra_forbidden":
        return f"{key}: there is no such key"
    text = first["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        text = f"expected {text}"
    elif text.startswith("Input should be "):
        text = f"expected {text.removeprefix('Input should be ')}"
    shown = "" if isinstance(given, dict | Description) else f", got {given!r}"
    return f"{key + ': ' if key else ''}{text}{shown}"
