"""Train a fast model on what a slow surrogate draws: its student.

The student keeps the teacher's preprocessing, parameters and all stages but the last, whose model is another.  That
learns from as many events as the teacher is asked for, not from as many as were simulated: how far the student is from
its teacher is a matter of its size and of the time for its training alone.  Better than its teacher it is not.

A consistency model learns the solutions of a diffusion teacher (`train.consistency`).  All other students are fitted to
events that the teacher draws: where those have a density, as a coupling flow has for which an autoregressive one is
the teacher, it is the density of the teacher that they come to, by the divergence KL(teacher | student) (as the density
distillation of CaloFlow, Krause and Shih 2021, arXiv:2110.11377, in the direction that loses no modes).
"""

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from sbi_physics.core.progress import progress_bar
from sbi_physics.core.random import derive, seeded
from sbi_physics.models.consistency import ConsistencyModel
from sbi_physics.models.diffusion.density import OBJECTIVES, DiffusionDensity
from sbi_physics.models.diffusion.multistep import PRECISE
from sbi_physics.surrogate.build import SurrogateArchitecture, build_model
from sbi_physics.surrogate.chain import ModelChain
from sbi_physics.surrogate.fitting import Training, settings_for, train_stage
from sbi_physics.train.config import TrainConfig
from sbi_physics.train.consistency import distill_consistency

__all__ = ["distill_chain", "student_architecture"]

_ROWS_AT_ONCE = 1 << 14
_SIZES = ("hidden_features", "blocks")


def student_architecture(
    teacher: SurrogateArchitecture, model: str, members: int, options: dict[str, Any]
) -> SurrogateArchitecture:
    """What is needed to build the student.

    Args:
        teacher: the architecture of the teacher.
        model: the name of the model of its last stage.
        members: flows of an ensemble.
        options: of the model; a consistency model is as large as its diffusion teacher where they do not say.
    """
    same = {key: teacher.options[key] for key in _SIZES if key in teacher.options}
    sizes = same if model == "consistency" and teacher.model in OBJECTIVES else {}
    return replace(teacher, model=model, options={**sizes, **options}, members=members)


def distill_chain(
    teacher: ModelChain, architecture: SurrogateArchitecture, theta: Tensor, how: Training
) -> tuple[ModelChain, list[dict[str, Any]]]:
    """The trained student, and the record of its training.

    Args:
        teacher: trained.
        architecture: of the student.
        theta: ``(N, P)``, where the teacher draws an event each.
        how: see `surrogate.fitting.Training`.
    """
    teacher = copy.deepcopy(teacher).to(how.device).eval()
    *early, last = teacher.stages
    with seeded(derive(how.seed, "weights", len(early))):
        student = build_model(architecture, len(early), engine=how.engine)
    # Before the teacher draws: that may take long, and wrong settings are to be told at once.
    config = settings_for(student, architecture.model, how.config)
    if isinstance(last, DiffusionDensity) and last.sampling_steps is None:
        last.sampling_steps = PRECISE
    followed = isinstance(student, ConsistencyModel) and isinstance(last, DiffusionDensity)
    contexts, events = _draws(teacher, theta, how, contexts_alone=followed)
    if isinstance(student, ConsistencyModel) and isinstance(last, DiffusionDensity):
        record = distill_consistency(
            student.to(how.device),
            last,
            len(theta),
            last.context_scaling(contexts),
            config=cast(TrainConfig, config),
            seed=derive(how.seed, "train", len(early)),
            checkpoint=how.checkpoint,
            progress=how.progress,
            description="training the student",
        ).to_dict()
    else:
        student.fit_scaling(events, contexts).to(how.device)
        record = train_stage(architecture, student, len(early), events, contexts, None, how)
    return ModelChain(teacher.preprocessing, [*early, student]).eval(), [record]


@torch.no_grad()
def _draws(teacher: ModelChain, theta: Tensor, how: Training, *, contexts_alone: bool) -> tuple[Tensor, Tensor]:
    """Contexts ``(N, C)`` of the last stage, and its events ``(N, D)``; no events where contexts alone are wanted."""
    *early, last = teacher.stages
    contexts, events = [], []
    with progress_bar(len(theta), "drawing from the teacher", enabled=how.progress and not contexts_alone) as advance:
        for start in range(0, len(theta), _ROWS_AT_ONCE):
            rows = theta[start : start + _ROWS_AT_ONCE].to(how.device)
            seed = derive(how.seed, "draws", start)
            drawn = teacher.draw(rows, early, seed=seed)
            contexts.append(teacher.preprocessing.context(rows, drawn))
            if not contexts_alone:
                events.append(last.sample(1, contexts[-1], seed=derive(seed, "stage", len(early)))[0])
            advance(len(rows))
    return torch.cat(contexts), torch.cat(events) if events else contexts[0][:0]
