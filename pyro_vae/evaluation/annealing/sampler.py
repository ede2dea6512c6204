"""Annealed importance sampling: log p(x) by chains that walk from q(z|x), or p(z), to p(z|x)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path as File
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...core.evaluation_mode import eval_mode
from ...core.validation import positive_int
from ...data.splits import Split
from ...programs.base import Program, use_own_parameters
from ...programs.hmc import check_target, jitter_step_size, start, transition
from ...programs.importance_weights import find_layout, max_pairs
from ...programs.inputs import ProgramInputs, prepare
from ...programs.particles import map_batched
from ..bounds import Bounds
from ..importance.streaming import refuse_nan
from ..resumable import fingerprint, in_blocks
from .compiled import compiled_path
from .path import Path, PathState, annealed, bridge, explored
from .schedules import SCHEDULES, betas_of

__all__ = [
    "Annealing",
    "Plan",
    "ais",
    "forward",
    "log_mean_exp",
    "over_paths",
    "planned",
]

#: Temperatures of a pilot: a fifth of those to come, and no fewer than these.
_FEWEST, _SHARE = 20, 5
#: Transitions that part chains which begin at the same place.
_PARTING = 20

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Annealing:
    """How annealed importance sampling walks.

    Attributes:
        num_chains: chains C for each datum; a single one cannot tell its own noise.
        num_temperatures: steps T from β = 0 to β = 1.
        num_steps: leapfrog steps of the transition at each temperature.
        initial: where chains begin: ``guide``, at q(z|x), which needs the fewer temperatures
            the better q is, or ``prior``, at p(z), which owes nothing to q.
        schedule: how β rises: ``sigmoidal``, slowly at both ends; ``linear``; ``adaptive``, by
            steps that lose the same effective sample size each.
        target: the probability of acceptance that step sizes are tuned to.

    Raises:
        ValueError: if a number is out of range or a name is none of these.

    References:
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016),
        sections 3.1 and 4. https://arxiv.org/abs/1611.04273
    """

    num_chains: int = 8
    num_temperatures: int = 500
    num_steps: int = 10
    initial: Literal["guide", "prior"] = "guide"
    schedule: Literal["sigmoidal", "linear", "adaptive"] = "sigmoidal"
    target: float = 0.65

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "num_steps"):
            positive_int(name, getattr(self, name))
        check_target(self.target)
        for name, known in (("initial", ("guide", "prior")), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"expected {name} to be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        if self.schedule == "adaptive" and self.num_chains < 2:
            raise ValueError(
                "expected num_chains ≥ 2 for the adaptive schedule, which looks at how the chains "
                "of a datum differ; got 1"
            )


def ais(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    annealing: Annealing = Annealing(),
    seed: int = 0,
    checkpoint: File | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    """log p(x) of every datum by annealed importance sampling.

    A pilot tunes step sizes by datum and temperature; the run that counts has them frozen, so
    that its weights are unbiased: the mean of w over C chains is p(x) in expectation, and its
    logarithm a lower bound of log p(x) in expectation.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them, whose latent
            sites are continuous.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        annealing: how to walk.
        seed: of the draws and of the binarisation; global generators are left as they were.
        checkpoint: a file to keep finished blocks of data in, so that the same call goes on
            where it was interrupted.
        progress: show a progress bar on the standard error.

    Returns:
        :class:`Bounds` with the row ``ais`` and, by datum, ``ais_ess``, the effective number
        of chains, and ``acceptance``, the mean probability along the path.

    Raises:
        ValueError: if a latent site is discrete or on a sphere; if the guide has no density at
            a draw that is not its own and the chains begin there; if a weight is NaN; and as
            for :func:`~pyro_vae.evaluate`.

    References:
        Annealed Importance Sampling (Neal, 2001). https://arxiv.org/abs/physics/9803008
        On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2016),
        section 3.1. https://arxiv.org/abs/1611.04273
    """

    columns = over_paths(
        partial(forward, annealing=annealing),
        prepare(program, data, args, kwargs, seed),
        annealing,
        seed=seed,
        checkpoint=checkpoint,
        progress=progress,
        name="AIS",
    )
    return Bounds(
        num_samples=annealing.num_chains,
        per_datum=columns,
        seed=seed,
        settings={"annealing": asdict(annealing)},
    )


def forward(
    path: Path, plan: Plan, rows: slice, advance: Advance, annealing: Annealing
) -> dict[str, Tensor]:
    """The columns of :func:`ais` for some of the data."""
    log_w, acceptance = plan.walk(path, path.draw(annealing.num_chains), advance)
    value, variance, ess = log_mean_exp(log_w, rows)
    return {"ais": value, "ais_variance": variance, "ais_ess": ess, "acceptance": acceptance}


@dataclass(frozen=True)
class Plan:
    """A schedule with its frozen step sizes.

    Attributes:
        betas: β from 0 to 1, T + 1 of them.
        step_sizes: of each, ``(T + 1, 1, N)``.
        num_steps: leapfrog steps of a transition.
    """

    betas: tuple[float, ...]
    step_sizes: Tensor
    num_steps: int

    @property
    def backwards(self) -> Plan:
        """The same way from β = 1 to 0."""
        return Plan(self.betas[::-1], self.step_sizes.flip(0), self.num_steps)

    def settled(
        self, path: Path, exact: Mapping[str, Tensor], num_chains: int
    ) -> Mapping[str, Tensor]:
        """Draws of the last β for each of C chains, ``(C, N, …)``, from one, ``(1, N, …)``.

        Transitions that leave the distribution as it is part the chains from each other.
        """
        position = {name: v.expand(num_chains, *v.shape[1:]) for name, v in exact.items()}
        density = path.density(self.betas[-1])
        point = start(density, position)
        for _ in range(_PARTING):
            epsilon = jitter_step_size(self.step_sizes[-1].expand_as(point.log_density))
            point, _ = transition(density, point, epsilon, self.num_steps)
        return point.position

    def moments(self, path: Path, position: Mapping[str, Tensor]) -> Iterator[PathState]:
        """See :func:`~pyro_vae.evaluation.annealing.path.annealed`."""
        return annealed(path, position, self.betas, self.step_sizes, self.num_steps)

    def walk(
        self, path: Path, position: Mapping[str, Tensor], advance: Advance
    ) -> tuple[Tensor, Tensor]:
        """The log weights ``(C, N)`` at the end, and the mean acceptance ``(N,)``.

        Arguments:
            path: what is walked along.
            position: where chains begin.
            advance: told what share of the way is done, step by step.
        """
        accepted, log_weights = [], torch.empty(0)
        for moment in self.moments(path, position):
            log_weights = moment.log_weights
            if moment.acceptance is not None:
                accepted.append(moment.acceptance.mean(0))
            advance(1 / (len(self.betas) - 1))
        if not accepted:  # a single temperature moves nothing
            return log_weights, torch.full_like(log_weights[0], math.nan)
        return log_weights, torch.stack(accepted).mean(0)


def planned(path: Path, annealing: Annealing) -> Plan:
    """A schedule for these data and its step sizes, from a pilot run of their own chains."""
    rough = betas_of(annealing.schedule, max(_FEWEST, annealing.num_temperatures // _SHARE))
    pilot = explored(path, rough, annealing.num_chains, annealing.num_steps, annealing.target)
    betas = betas_of(annealing.schedule, annealing.num_temperatures, pilot)
    return Plan(betas, pilot.step_sizes_at(betas), annealing.num_steps)


def over_paths(
    walk: Callable[[Path, Plan, slice, Advance], Mapping[str, Tensor]],
    given: ProgramInputs,
    annealing: Annealing,
    *,
    seed: int,
    name: str,
    plan: Callable[[Path, Annealing], Plan] | None = None,
    checkpoint: File | None = None,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Columns per datum from paths of blocks of data, each with a plan of its own.

    Arguments:
        walk: ``walk(path, plan, rows, advance)`` gives the columns of these rows.
        given: the program and its data.
        annealing: how to walk.
        seed: of all draws.
        name: what is walked for; another name has other draws.
        plan: makes the plan of a path; :func:`planned` if not given.
        checkpoint, progress: as for :func:`ais`.
    """
    model, guide, x, args, kwargs = given
    size = len(x)

    def compute(rows: slice, advance: Advance) -> Mapping[str, Tensor]:
        inputs, named = map_batched(lambda part: part[rows], size, (x, *args), kwargs)
        layout = find_layout(model, guide, *inputs, **named)
        path = bridge(model, guide, *inputs, layout=layout, initial=annealing.initial, **named)
        gradients = annealing.num_temperatures * annealing.num_steps
        path = compiled_path(path, gradients, layout.width)
        return walk(path, (plan or planned)(path, annealing), rows, advance)

    with torch.no_grad(), use_own_parameters(model, guide), eval_mode(model, guide):
        return in_blocks(
            compute,
            size,
            block=max(1, max_pairs(x) // annealing.num_chains),
            entropy=(seed, *name.encode()),
            checkpoint=checkpoint,
            key=fingerprint(name, plan, asdict(annealing), model, guide, x, args, kwargs)
            if checkpoint
            else "",
            progress=progress,
            desc=name,
        )


def log_mean_exp(log_w: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
    """log of the mean weight of C chains, its variance, and the effective number of chains.

    The variance is the jackknife's, which a single large weight does not escape as it does the
    delta method's; NaN where there is no second chain, or none of a weight above zero.

    Arguments:
        log_w: ``(C, N)`` float64.
        rows: which data they are of.

    Returns:
        Each ``(N,)``.

    Raises:
        ValueError: if a weight is NaN or infinite.
    """
    refuse_nan(log_w, rows.start)
    count = len(log_w)
    value = log_w.logsumexp(0) - math.log(count)
    # a datum whose chains all have weight zero has none that counts
    shares = log_w.softmax(0).nan_to_num(nan=1 / count)
    ess = 1 / shares.square().sum(0)
    if count < 2:
        return value, torch.full_like(value, math.nan), ess
    # by sums of the other weights: one that outshines them is the whole sum when rounded, and
    # what is left of it without that one would be zero
    others = ~torch.eye(count, dtype=torch.bool, device=log_w.device)
    without = torch.stack([log_w[keep].logsumexp(0) for keep in others])
    return value, without.var(0, correction=0) * (count - 1), ess
