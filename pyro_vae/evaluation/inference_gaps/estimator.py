"""``gaps``: how much of log p(x) − ELBO is the family's fault, and how much the encoder's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.evaluation_mode import eval_mode
from ...core.random import seeded
from ...core.validation import positive_int
from ...data.splits import Split
from ...posteriors import FullCovarianceNormal, Posterior
from ...programs.base import Program, use_own_parameters
from ...programs.importance_weights import find_layout, log_weights
from ...programs.inputs import ProgramInputs, prepare
from ...programs.particles import map_batched
from ..annealing.sampler import Annealing, ais
from ..bounds import Bounds
from ..importance.streaming import Block
from ..resumable import fingerprint, in_blocks
from .families import Family, FamilyFactory, fresh, like, name_of, own
from .refitting import Refit, Settings, refit, target_of
from .result import PROPOSALS, Gaps, highest

__all__ = ["Gaps", "gaps"]

#: What the columns of these random numbers are called.
_STREAM = b"gaps"
#: Draws behind the moments that a family starts from.
_MOMENTS = 200

Advance = Callable[[float], None]


def gaps(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    train: Split | Tensor | None = None,
    family: FamilyFactory | None = None,
    richer: FamilyFactory | None = FullCovarianceNormal,
    annealing: Annealing | None = Annealing(),
    num_steps: int = 500,
    step_size: float = 0.05,
    num_draws: int = 4,
    num_samples: int = 5000,
    block: int = 100,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Gaps:
    """log p(x) − ELBO = approximation gap + amortisation gap, datum by datum.

    q is refitted to every datum by itself: what the best member of the family still lacks is
    the approximation gap, log p̂(x) − ELBO(q*), and what the encoder lacks of that member is the
    amortisation gap, ELBO(q*) − ELBO(q). log p̂ is the better, by its mean over the data, of
    lower bounds: importance sampling from the encoder's or a refitted q, and annealing.

    The family is that of the program's ``posterior`` (of a semi-amortised one, what it refines),
    whose refit starts from what the encoder said; weights that it has besides its network, as
    of an autoregressive flow, are held. A program without a single ``posterior`` (a
    :class:`~pyro_vae.HierarchicalVAE`, somebody's own pair) has a family named for it, which is
    laid over the unconstrained latents of all its sites as one vector: without ``family``, the
    normal that its guide's only site is, or a full covariance. **Both gaps are then relative
    to that family.** If it cannot say what the guide does, the amortisation gap comes out too
    small, even negative.

    Where the refit did not find the best member, the approximation gap is too large and the
    amortisation gap too small by the same; where log p̂ falls short of log p(x), the
    approximation gap is too small.

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them, whose latents are
            continuous.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: further arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        train: training data whose amortisation gap is compared with that of ``data``.
        family: ``family(event_shape, latent_dim, network)`` to refit in place of the program's.
        richer: another, refitted as a check of how much of the approximation gap a richer
            family closes; ``None`` for none. Left out where it is the family itself.
        annealing: how annealed importance sampling walks; ``None`` leaves it out.
        num_steps: steps of Adam for each datum.
        step_size: the first.
        num_draws: draws for each datum in a step.
        num_samples: fresh draws of each q for its ELBO and for importance sampling.
        block: how many data to refit at once.
        seed: of all draws and of the binarisation; global generators are left as they were.
        checkpoint: a file to keep finished blocks of data in, so that the same call goes on
            where it was interrupted; files beside it, whose names end in ``.train`` and
            ``.ais``, do so for their parts.
        progress: show progress bars on the standard error.

    Returns:
        The :class:`Gaps`.

    Raises:
        ValueError: if a latent site is discrete, if a family does not go with the latents (on a
            sphere give ``richer=None``) or has weights of its own, if ``train`` is given with
            further arguments, if a number is out of range, and as for
            :func:`~pyro_vae.evaluate`.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018),
        sections 3 and 5. https://arxiv.org/abs/1801.03558
    """
    if not 0 < step_size < float("inf"):
        raise ValueError(f"expected step_size > 0 and finite; got {step_size}")
    if train is not None and (args or kwargs):
        raise ValueError(
            "expected train without further arguments, which are those of data; got both: give "
            "Splits with labels, or judge the training data by a call of their own"
        )
    settings = Settings(
        positive_int("num_steps", num_steps), step_size, positive_int("num_draws", num_draws)
    )
    plan = _Plan(family, richer, settings, positive_int("num_samples", num_samples))
    place = {"block": positive_int("block", block), "seed": seed, "progress": progress}
    given = prepare(program, data, args, kwargs, seed)
    found = plan.bounds(given, checkpoint, **place)
    if annealing is not None:
        found = found.merged(
            ais(
                *(program, data, *args),
                annealing=annealing,
                seed=seed,
                checkpoint=_beside(checkpoint, "ais"),
                progress=progress,
                **kwargs,
            )
        )
    there = None
    if train is not None:
        alone = replace(plan, richer=None)
        there = alone.bounds(
            prepare(program, train, seed=seed), _beside(checkpoint, "train"), **place
        )
    return Gaps(found, there)


@dataclass(frozen=True)
class _Plan:
    """What is refitted, and how; the arguments are those of :func:`gaps`.

    Once it is resolved, ``name`` is that of the family, and ``family`` is ``None`` only where
    it is the program's own.
    """

    family: FamilyFactory | None
    richer: FamilyFactory | None
    settings: Settings
    num_samples: int
    name: str = ""

    @property
    def told(self) -> dict[str, Any]:
        """The plan in words."""
        return {
            "family": self.name,
            "richer": None if self.richer is None else name_of(self.richer),
            "num_samples": self.num_samples,
            **asdict(self.settings),
        }

    def bounds(
        self, given: ProgramInputs, checkpoint: Path | None, block: int, seed: int, progress: bool
    ) -> Bounds:
        """ELBO, that of the refitted and of the richer family, and the best L_K of these."""
        model, guide, x, args, kwargs = given
        if not isinstance(x, Tensor) or x.ndim < 1 or not len(x):
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"expected x to be a tensor of shape (N ≥ 1, …); got {got}")

        def inputs(rows: slice) -> tuple[tuple, dict[str, Any]]:
            return map_batched(lambda part: part[rows], len(x), (x, *args), kwargs)

        with torch.no_grad(), use_own_parameters(model, guide), eval_mode(model, guide):
            with seeded(seed, *_STREAM):
                plan = self._resolved(guide, *inputs(slice(0, block)))

            def compute(rows: slice, advance: Advance) -> dict[str, Tensor]:
                return plan.block(model, guide, *inputs(rows), start=rows.start, advance=advance)

            parts = (plan.told, plan.family, plan.richer, *given)
            columns = in_blocks(
                compute,
                len(x),
                block=block,
                entropy=(seed, *_STREAM),
                checkpoint=checkpoint,
                key=fingerprint(*parts) if checkpoint else "",
                progress=progress,
                desc="gaps",
            )
        names = [name for name in PROPOSALS if name in columns]
        best = highest(
            {n: (columns[f"{n}_evidence"], columns[f"{n}_evidence_variance"]) for n in names}
        )
        for column in ("log_evidence", "log_evidence_variance", "khat", "ess"):
            columns[column] = columns[f"{best}_{column.removeprefix('log_')}"]
        if best == "elbo":  # of the same draws
            columns["gap_variance"] = columns["elbo_rise_variance"]
        return Bounds(
            num_samples=self.num_samples,
            per_datum=columns,
            seed=seed,
            settings={"gaps": {**plan.told, "proposal": best}},
        )

    def block(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        inputs: tuple,
        named: Mapping[str, Any],
        start: int,
        advance: Advance,
    ) -> dict[str, Tensor]:
        """The columns of some of the data, of which the first is datum ``start``."""
        layout = find_layout(model, guide, *inputs, **named)
        count, refits = self.num_samples, 2 if self.richer else 1

        def judged(name: str, log_w: Iterable[Tensor]) -> dict[str, Tensor]:
            return _judged(name, log_w, len(inputs[0]), count, start)

        def fitted(family: Family) -> Refit:
            return refit(family, target, self.settings, lambda share: advance(share / refits))

        amortised = log_weights(model, guide, *inputs, num_samples=count, **named)
        columns = judged("elbo", [amortised])
        theirs = own(guide, inputs, named) if self.family is None else None
        target = target_of(
            *(model, guide, *inputs), layout=layout, as_drawn=theirs is not None, **named
        )
        if theirs is None:
            assert self.family is not None  # or it was resolved
            drawn = target.draw(_MOMENTS)
            theirs = fresh(self.family, inputs[0], *_apart(drawn.mean(0), drawn.std(0)))
        ours = fitted(theirs)
        columns |= judged("refitted", ours.log_weights(count))
        columns |= {"refitted_late": ours.late, "refitted_better": ours.better.double()}
        if self.richer is not None:
            moments = _apart(*ours.family.moments(ours.words, _MOMENTS))
            more = fitted(fresh(self.richer, inputs[0], *moments))
            columns |= judged("richer", more.log_weights(count))
            columns |= {"richer_late": more.late, "richer_better": more.better.double()}
        return columns

    def _resolved(self, guide: Callable[..., Any], inputs: tuple, named: Mapping) -> _Plan:
        theirs = own(guide, inputs, named) if self.family is None else None
        if theirs is None:
            family = self.family or like(guide, inputs, named)
            name = name_of(family)
        else:
            family, name = None, theirs.name
            if self.richer is not None and theirs.posterior.space is not Posterior.space:
                raise ValueError(
                    f"expected latents in {Posterior.space} for a richer family; those of {name} "
                    f"are on {theirs.posterior.space}: give richer=None"
                )
        same = self.richer is not None and name_of(self.richer) == name
        return replace(self, family=family, richer=None if same else self.richer, name=name)


def _judged(
    name: str, chunks: Iterable[Tensor], size: int, num_samples: int, start: int
) -> dict[str, Tensor]:
    """What the log weights of one q say: its ELBO as ``name``, and its L_K."""
    block = Block(size, num_samples, (), size)
    for log_w in chunks:
        block.update(log_w.double().cpu(), start)
    found = block.result()
    return {
        name: found["elbo"],
        f"{name}_variance": found["elbo_variance"],
        f"{name}_evidence": found["log_evidence"],
        f"{name}_evidence_variance": found["log_evidence_variance"],
        f"{name}_rise_variance": found["gap_variance"],
        f"{name}_khat": found["khat"],
        f"{name}_ess": found["ess"],
    }


def _apart(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Moments, of which no standard deviation is so small that it could not be a unit."""
    return mean, scale.clamp(min=torch.finfo(scale.dtype).eps ** 0.5)


def _beside(checkpoint: Path | None, part: str) -> Path | None:
    if checkpoint is None:
        return None
    return Path(checkpoint).with_name(f"{Path(checkpoint).name}.{part}")
