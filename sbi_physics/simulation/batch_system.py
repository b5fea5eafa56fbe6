"""Workers that a batch system runs: a cluster of dask-jobqueue from a description, as an analysis file holds it.

    sp.simulate("decay.py:Decay", 10_000_000, out="/shared/decay.h5",
                cluster={"system": "slurm", "jobs": 20, "cores": 32, "memory": "64 GB", "walltime": "12:00:00"})

The jobs are asked for when the run begins and given back when it ends, however it ends.
"""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from sbi_physics.core.checks import known_keys, positive_integer
from sbi_physics.core.errors import UsageError

__all__ = ["SYSTEMS", "batch_cluster"]

SYSTEMS = {
    "slurm": "SLURMCluster",
    "htcondor": "HTCondorCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "oar": "OARCluster",
    "moab": "MoabCluster",
    "local": "LocalCluster",
}
"""Classes of dask-jobqueue; ``"local"`` runs the scripts of its jobs on this machine."""


@contextmanager
def batch_cluster(description: Mapping[str, Any]) -> Iterator[Any]:
    """A cluster whose jobs a batch system has been asked for.

    Args:
        description: ``system``, one of `SYSTEMS`; ``jobs``, how many to ask for; and the arguments of the class of
            dask-jobqueue, such as ``cores``, ``memory``, ``walltime``, ``queue``, ``job_extra_directives``.

    Raises:
        UsageError: the extra ``cluster`` is missing, or the class does not take such arguments.
    """
    options = dict(description)
    system, jobs = options.pop("system", None), positive_integer(options.pop("jobs", 1), "cluster.jobs")
    known_keys([str(system)], list(SYSTEMS), "cluster.system")
    try:
        module = importlib.import_module("dask_jobqueue.local" if system == "local" else "dask_jobqueue")
    except ImportError as error:
        raise UsageError("cluster: needs the extra 'cluster': pip install 'sbi-physics[cluster]'") from error
    try:
        cluster = getattr(module, SYSTEMS[str(system)])(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"cluster: {system}: {' '.join(str(error).split())}") from error
    try:
        cluster.scale(jobs=jobs)
        yield cluster
    finally:
        # A cluster that is gone is no news here.
        with suppress(Exception):
            cluster.close()
