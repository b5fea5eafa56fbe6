"""All benchmarks by one command, each job beside Markov chain Monte Carlo on the same problem.

    python -m benchmarks run [posterior surrogate integrate anomaly flows] [--device cpu|cuda] [--quick] [--out FOLDER]
    python -m benchmarks table

=============  ================================================================  ======================================
job            what is measured                                                  beside
=============  ================================================================  ======================================
posterior      planets of K2-24 and cosmology from Union3 by NPE, NLE and VI     emcee, Hamiltonian Monte Carlo
surrogate      stars of a galaxy from star particles                             emcee on the exact density
integrate      unweighted events of a learned map                                emcee, vegas, madnis
anomaly        the background of a signal region by the template of a flow       emcee on the fit of the spectrum
flows          a field on a lattice by a Boltzmann generator; whole fits         Hamiltonian Monte Carlo; sbi
=============  ================================================================  ======================================

Full figures go to ``benchmarks/results``, from which ``table`` writes ``benchmarks/RESULTS.md``.  Quick ones, of small
budgets, go to a folder of their own: they show that all works, and are no claim.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.tables import table

__all__ = ["JOBS", "Script", "main"]

HERE = Path(__file__).parent
QUICK_FOLDER = Path("benchmarks-quick")


class Script(NamedTuple):
    """A script and what makes it quick.

    Attributes:
        module: below `benchmarks`.
        quick: its arguments for a small budget; ``{out}`` is the folder of the results.
        cuda_only: whether it measures a GPU and nothing else.
    """

    module: str
    quick: tuple[str, ...] = ()
    cuda_only: bool = False


JOBS: dict[str, tuple[Script, ...]] = {
    "posterior": (
        Script("posterior.against_mcmc", ("--cases", "k2_24", "--quick")),
        Script("posterior.supernovae", ("--models", "LambdaCDM", "--simulations", "4000", "--steps", "1500")),
    ),
    "surrogate": (
        Script(
            "surrogate.galaxy",
            (
                *("--particles", "2000", "--stars", "4000", "--seeds", "1", "--steps", "2000"),
                *("--picture", "{out}/galaxy.png"),
            ),
        ),
    ),
    "integrate": (Script("integration.events", ("--cases", "three_jets")),),
    "anomaly": (Script("anomaly.background", ("--events", "20000", "--toys", "100")),),
    "flows": (
        Script("integration.lattice", ("--side", "4", "--couplings", "6.975", "--steps", "400")),
        Script("flows.fits", ("--tasks", "two_moons", "--simulations", "1000")),
        Script("flows.gpu", cuda_only=True),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says, and return the exit status: 1 where a script failed."""
    options = _parser().parse_args(arguments)
    if options.verb == "table":
        from benchmarks.report import main as write_table

        write_table()
        return 0
    out = options.out or (QUICK_FOLDER if options.quick else HERE / "results")
    if options.device == "cuda" and not _has_cuda():
        print("--device cuda: no CUDA device is available to PyTorch here", file=sys.stderr)
        return 2
    jobs = list(dict.fromkeys(options.jobs)) or list(JOBS)
    return _run(jobs, options.device, options.quick, out.resolve())


def _parser() -> argparse.ArgumentParser:
    description, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=description,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="measure")
    run.add_argument("jobs", nargs="*", type=_job, metavar="JOB", help=f"{', '.join(JOBS)}; all by default")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    run.add_argument("--quick", action="store_true", help="small budgets, at most 20 minutes on two cores")
    run.add_argument("--out", type=Path, help=f"folder of the results (benchmarks/results; quick: {QUICK_FOLDER})")
    verbs.add_parser("table", help="write benchmarks/RESULTS.md from benchmarks/results")
    return parser


def _job(name: str) -> str:
    if name not in JOBS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(JOBS)}; got {name!r}")
    return name


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _run(jobs: Sequence[str], device: str, quick: bool, out: Path) -> int:
    """Run the scripts of some jobs one after the other, and print what was found."""
    scripts = [(job, script) for job in jobs for script in JOBS[job] if device == "cuda" or not script.cuda_only]
    out.mkdir(parents=True, exist_ok=True)
    environment = _environment(device, out)
    rows, failed = [], 0
    for number, (job, script) in enumerate(scripts, 1):
        print(f"[{number}/{len(scripts)}] {job}: {script.module} ...", file=sys.stderr, flush=True)
        log = out / f"{script.module}.log"
        seconds, status = _measured(script, quick, out, environment, log)
        failed += status != 0
        result = "done" if status == 0 else f"failed: {_last_line(log)} ({log})"
        print(f"[{number}/{len(scripts)}] {job}: {result} after {seconds:.0f} s", file=sys.stderr, flush=True)
        rows.append([job, script.module, f"{seconds:.0f}", result])
    _print_tables(out, rows)
    return 1 if failed else 0


def _measured(script: Script, quick: bool, out: Path, environment: dict[str, str], log: Path) -> tuple[float, int]:
    """Seconds and exit status of a script, whose words go to a file."""
    arguments = [argument.format(out=out) for argument in script.quick] if quick else []
    command = [sys.executable, "-m", f"benchmarks.{script.module}", *arguments]
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, cwd=HERE.parent, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False
        )
    return time.monotonic() - began, done.returncode


def _environment(device: str, out: Path) -> dict[str, str]:
    settings = {"SBI_PHYSICS_BENCHMARK_RESULTS": str(out), "SBI_PHYSICS_BENCHMARK_DEVICE": device}
    if device == "cpu":
        settings["CUDA_VISIBLE_DEVICES"] = ""
    return {**os.environ, **settings}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"


def _print_tables(out: Path, rows: list[list[str]]) -> None:
    from benchmarks.report import parts_of

    parts = [*parts_of(out), "## This run", table(["job", "script", "seconds", "result"], rows)]
    print("\n\n".join(parts))


if __name__ == "__main__":
    sys.exit(main())
