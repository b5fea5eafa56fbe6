"""docs/run.md knows every key of every job."""

from pathlib import Path
from typing import get_args

import pytest

from sbi_physics.run.configuration import JOBS, TrainingPart

TEXT = (Path(__file__).parents[2] / "docs" / "run.md").read_text()


def tables_in(annotation):
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        return [annotation]
    return [table for inner in get_args(annotation) for table in tables_in(inner)]


def keys(table, prefix=""):
    for name, field in table.model_fields.items():
        inner = tables_in(field.annotation)
        if name == "prior" or inner == [TrainingPart]:
            yield from ((f"{name}", f"`{key}`") for each in inner for key in each.model_fields)
        elif inner:
            for each in inner:
                yield from keys(each, f"{prefix}{name}.")
        else:
            yield prefix, f"`{prefix}{name}`"


@pytest.mark.parametrize("job", JOBS)
def test_every_key_is_documented(job):
    missing = {key for _, key in keys(JOBS[job]) if key not in TEXT and key != "`seeds`"}
    assert not missing
