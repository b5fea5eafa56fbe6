"""`sbi-physics integrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sbi_physics.cli.common import (
    JsonOption,
    Output,
    QuietOption,
    SeedOption,
    check_hdf5_name,
    check_writable,
    foreign_code,
)

if TYPE_CHECKING:
    from sbi_physics.integration.integrate import Estimate

__all__ = ["integrate"]


def integrate(
    integrand: Annotated[str, typer.Argument(help="A process by name, or path/file.py:name of a function or process.")],
    dims: Annotated[int | None, typer.Option(help="Dimensions of a plain function of points (n, dims).")] = None,
    rel_error: Annotated[float | None, typer.Option(help="Relative error at which it is done.")] = None,
    abs_error: Annotated[float | None, typer.Option(help="The same in the unit of the integrand.")] = None,
    calls: Annotated[int | None, typer.Option(help="Evaluations of the integrand at most.")] = None,
    neural: Annotated[bool, typer.Option(help="Whether flows may be trained: fewer calls, more time.")] = True,
    non_finite_as_zero: Annotated[bool, typer.Option(help="Count NaN and infinity as zero, and say so.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File for unweighted events (HDF5, or .lhe).")] = None,
    events: Annotated[int, typer.Option(help="How many events, where a file is given.")] = 10_000,
    incoming: Annotated[str | None, typer.Option(help="Particle numbers (PDG) that come in, for .lhe: 11,-11.")] = None,
    outgoing: Annotated[str | None, typer.Option(help="Particle numbers (PDG) that go out, for .lhe: 13,-13.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Wall-clock budget.")] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Integrate a function over the unit cube, or a cross section, and draw its events."""
    from sbi_physics.core.errors import UsageError
    from sbi_physics.integration.integrate import integrate as estimate
    from sbi_physics.integration.processes import resolve_integrand

    output = Output(json, quiet)
    if out is not None:
        check_writable(out)
    particles = [_numbers(each, name) for each, name in ((incoming, "--incoming"), (outgoing, "--outgoing"))]
    if out is not None and out.suffix != ".lhe":
        check_hdf5_name(out)
    if out is not None and out.suffix == ".lhe" and not all(particles):
        raise UsageError(f"{out}: expected --incoming and --outgoing, the numbers of the particles, for this format")
    with foreign_code():
        f = resolve_integrand(integrand, dims=dims)
        found = estimate(
            f,
            rel_error=rel_error,
            abs_error=abs_error,
            calls=calls,
            neural=neural,
            non_finite="zero" if non_finite_as_zero else "raise",
            seed=seed,
            max_seconds=max_seconds,
            progress=output.progress,
        )
        output.say(found.history)
        drawn = {} if out is None else _write(out, f, found, events, seed, output, particles)
    unit = getattr(f, "unit", "")
    text = f"{found.value:.8g} +- {found.error:.2g} {unit}".rstrip() + f", {found.calls} calls, {found.verdict}"
    if drawn:
        text += f"\n{drawn['out']}: {drawn['events']} events of {drawn['event_calls']} further calls"
        text += "" if found.trusted else ", which are worth no more than the integral"
    output.result(text, unit=unit, **_summary(found), **drawn)


def _summary(found: "Estimate") -> dict[str, Any]:
    names = ("value", "error", "calls", "chi2", "degrees", "trusted", "verdict")
    return {
        name: getattr(found, name) for name in (*names, "effective_sample_size", "pareto_k", "efficiency", "seconds")
    }


def _numbers(text: str | None, name: str) -> list[int]:
    from sbi_physics.core.errors import UsageError

    try:
        return [int(each) for each in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(f"{name}: expected numbers with commas between them, got {text!r}") from error


def _write(
    out: Path, f: Any, found: "Estimate", events: int, seed: int, output: Output, particles: list[list[int]]
) -> dict[str, Any]:
    """Draw events and write them; what the result says of them."""
    from sbi_physics.core.errors import UsageError
    from sbi_physics.store.event_files import write_events, write_lhe

    drawn = found.unweight(events, seed=seed, progress=output.progress)
    arrays = {"points": drawn.points, "weights": drawn.weights}
    if hasattr(f, "momenta"):
        first, last, _ = f.momenta(drawn.points)
        arrays |= {"incoming": first, "outgoing": last}
    if out.suffix == ".lhe":
        if "incoming" not in arrays:
            raise UsageError(f"{out}: expected a process with momenta, this integrand has none; write HDF5 instead")
        write_lhe(
            out,
            arrays["incoming"],
            arrays["outgoing"],
            drawn.weights,
            incoming_ids=particles[0],
            outgoing_ids=particles[1],
            cross_section=found.value,
            error=found.error,
        )
    else:
        known = {"value": found.value, "error": found.error, "unit": getattr(f, "unit", ""), "seed": seed}
        write_events(out, arrays, {**known, "verdict": found.verdict, "overweight": drawn.overweight})
    return {
        "events": len(drawn),
        "unweighting_efficiency": drawn.efficiency,
        "overweight": drawn.overweight,
        "event_calls": drawn.calls,
        "out": str(out),
    }
