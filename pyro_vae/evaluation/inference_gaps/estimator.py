"""Estimation of the approximation gap and the amortisation gap by refitting q to each example."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ... import posteriors
from ...core.random import Stream, seeded
from ...core.validation import did_you_mean, positive_int
from ...data import Dataset, Split
from ...posteriors import FullCovarianceNormal, Posterior
from ...programs.arguments import ProgramInputs
from ...programs.base import Program
from ...programs.context import evaluating
from ...programs.importance_weights import audited_log_weights, find_layout
from ...programs.inputs import AnyData, AnyProgram, normalize_order, prepare
from ..annealing.sampler import Annealing, ais
from ..bounds import Bounds
from ..importance.errors import estimate_errors
from ..importance.streaming import StreamingEstimates
from ..normalization import normalization_settings
from ..resumable import compute_in_blocks
from ..slices import Evaluation, SplitName
from .families import (
    FamilyFactory,
    VariationalFamily,
    choose_family,
    extract_family,
    get_family_name,
    make_family,
)
from .refitting import RefitResult, RefitSettings, make_target_density, refit
from .result import PROPOSALS, Gaps, make_section, select_tightest_bound

__all__ = ["GAPS", "Gaps", "gaps"]

#: Samples used to estimate the moments that a family is initialised with.
_NUM_MOMENT_SAMPLES = 200

#: Suffix of the columns of one q, and the estimates that they contain.
_COLUMNS = {
    "": "elbo",
    "_variance": "elbo_variance",
    "_evidence": "log_evidence",
    "_evidence_variance": "log_evidence_variance",
    "_evidence_bias": "log_evidence_bias",
    "_rise_variance": "gap_variance",
    "_rise_bias": "gap_bias",
    "_khat": "khat",
    "_khat_pooled": "khat_pooled",
    "_ess": "ess",
}

Advance = Callable[[float], None]


def gaps(
    program: AnyProgram,
    data: AnyData,
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
    """Split log p(x) − ELBO into the approximation gap and the amortisation gap per example.

    q is refitted to each example separately, which gives the best member q* of its family:

    * approximation gap: log p̂(x) − ELBO(q*), the error of the best member of the family;
    * amortisation gap: ELBO(q*) − ELBO(q), the error of the encoder within that family.

    log p̂ is the lower bound with the larger mean over the data: importance sampling from the
    encoder's q or a refitted q, or annealed importance sampling.

    The family is that of the program's ``posterior`` (for a semi-amortised posterior, the family
    that it refines). Its refit starts from the encoder's output. Parameters outside its network,
    as in an autoregressive flow, stay fixed. A program without a single ``posterior`` (a
    :class:`~pyro_vae.HierarchicalVAE`, a user-defined pair) uses ``family`` over the
    unconstrained latents of all its sites as one vector. The default is a normal of the same
    form as the guide's only site, or a full-covariance normal. **Both gaps are then relative to
    that family.** If it does not contain the guide, the amortisation gap is too small and may
    even be negative.

    If a refit misses the best member of the family, the approximation gap is too large and the
    amortisation gap is too small by the same amount. The errors of the gaps include an estimate of
    that amount, from the gain of the last steps and from the difference of two runs with
    independent noise. A local maximum is not detected. If log p̂ underestimates log p(x), the
    approximation gap is too small.

    Arguments:
        program: any object with a ``model`` and a ``guide``, a pair of them, or model and guide as
            separate arguments before the data, with continuous latents.
        data: the examples, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`.
        *args: additional arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        train: training examples whose amortisation gap is compared with that of ``data``.
        family: ``family(event_shape, latent_dim, network)`` to refit instead of the program's.
        richer: a richer family to refit, which shows how much of the approximation gap it
            closes; ``None`` skips this check. Skipped if it is the same family.
        annealing: settings of annealed importance sampling; ``None`` skips it.
        num_steps: Adam steps for each example. The second half is run twice.
        step_size: the initial step size.
        num_draws: samples for each example in a step.
        num_samples: fresh samples from each q for its ELBO and for importance sampling.
        block: number of examples to refit at once.
        seed: seed of the samples and of the binarisation; global generators are not affected.
        checkpoint: file for finished blocks of examples; the same call resumes from it after an
            interruption. Files next to it with the suffixes ``.train`` and ``.ais`` store the
            corresponding parts.
        progress: show progress bars on standard error.

    Returns:
        The :class:`Gaps`.

    Raises:
        ValueError: if a latent site is discrete, if a family does not suit the latents (set
            ``richer=None`` for latents on a sphere) or has parameters besides its network, if
            ``train`` is combined with additional arguments, if a number is out of range, or as
            for :func:`~pyro_vae.evaluate`.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018),
        sections 3 and 5. https://arxiv.org/abs/1801.03558

    Example:
        >>> gaps = pv.gaps(vae, x[:3], num_steps=10, num_samples=50, richer=None, annealing=None)
        >>> len(gaps)
        3
    """
    program, data, args = normalize_order(program, data, args)
    if not 0 < step_size < float("inf"):
        raise ValueError(f"expected step_size > 0 and finite; got {step_size}")
    if train is not None and (args or kwargs):
        raise ValueError(
            "expected train without additional arguments, which apply to data only; got both: "
            "pass Splits with labels, or evaluate the training data in a separate call"
        )
    settings = RefitSettings(
        positive_int("num_steps", num_steps), step_size, positive_int("num_draws", num_draws)
    )
    evaluation = _GapEvaluation(family, richer, settings, positive_int("num_samples", num_samples))
    options = {"block": positive_int("block", block), "seed": seed, "progress": progress}
    inputs = prepare(program, data, args, kwargs, seed)
    bounds = evaluation.compute_bounds(inputs, checkpoint, stream=Stream.GAPS, **options)
    if annealing is not None:
        bounds = bounds.merge(
            ais(
                *(program, data, *args),
                annealing=annealing,
                seed=seed,
                checkpoint=_append_suffix(checkpoint, "ais"),
                progress=progress,
                **kwargs,
            )
        )
    train_bounds = None
    if train is not None:
        train_bounds = (
            replace(evaluation, richer=None)
            .compute_bounds(
                prepare(program, train, seed=seed),
                _append_suffix(checkpoint, "train"),
                stream=Stream.GAPS_TRAIN,
                **options,
            )
            .with_rows(getattr(train, "rows", None))
        )
    return Gaps(bounds, train_bounds).with_rows(getattr(data, "rows", None))


@dataclass(frozen=True)
class _GapEvaluation:
    """Families to refit and their settings; the fields are arguments of :func:`gaps`.

    After :meth:`_resolve`, ``name`` is the name of the family, and ``family`` is ``None`` only
    for the program's own family.
    """

    family: FamilyFactory | None
    richer: FamilyFactory | None
    settings: RefitSettings
    num_samples: int
    name: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """The settings as plain values."""
        return {
            "family": self.name,
            "richer": None if self.richer is None else get_family_name(self.richer),
            "num_samples": self.num_samples,
            **asdict(self.settings),
        }

    def compute_bounds(
        self,
        inputs: ProgramInputs,
        checkpoint: Path | None,
        block: int,
        seed: int,
        progress: bool,
        stream: Stream,
    ) -> Bounds:
        """Return the ELBOs of q, of the refitted q and of the richer q, and their best L_K."""
        with evaluating(inputs.model, inputs.guide):
            with seeded(seed, Stream.GAPS_SETUP):
                resolved = self._resolve(inputs.select(slice(0, block)))

            def compute(rows: slice, advance: Advance) -> dict[str, Tensor]:
                return resolved.compute_block(inputs.select(rows), rows.start, advance)

            columns = compute_in_blocks(
                compute,
                len(inputs.x),
                block=block,
                entropy=(seed, stream),
                checkpoint=checkpoint,
                key=(resolved.config, resolved.family, resolved.richer, *inputs),
                progress=progress,
                desc="gaps",
            )
        names = [name for name in PROPOSALS if name in columns]
        best = select_tightest_bound(
            {n: (columns[f"{n}_evidence"], columns[f"{n}_evidence_variance"]) for n in names}
        )
        for suffix in ("evidence", "evidence_variance", "evidence_bias"):
            columns[f"log_{suffix}"] = columns[f"{best}_{suffix}"]
        for name in ("khat", "khat_pooled", "ess"):
            columns[name] = columns[f"{best}_{name}"]
        if best == "elbo":  # both come from the same samples
            columns["gap_variance"] = columns["elbo_rise_variance"]
            columns["gap_bias"] = columns["elbo_rise_bias"]
        return Bounds(
            num_samples=self.num_samples,
            per_datum=columns,
            seed=seed,
            settings={
                "gaps": {**resolved.config, "proposal": best},
                **normalization_settings(inputs),
            },
        )

    def compute_block(
        self, inputs: ProgramInputs, start: int, advance: Advance
    ) -> dict[str, Tensor]:
        """Return the columns of a block of examples that begins at index ``start``."""
        model, guide, x, args, kwargs = inputs
        layout = find_layout(model, guide, x, *args, **kwargs)
        columns: dict[str, Tensor] = {}

        def add(name: str, chunks: Iterable[Tensor]) -> None:
            """Add the ELBO (as ``name``) and L_K of one q from its log weights."""
            estimates = StreamingEstimates(len(x), self.num_samples, ())
            for log_w in chunks:
                estimates.update(log_w.double().cpu(), start)
            values = estimate_errors(estimates.result(pooled=True))
            columns.update({f"{name}{suffix}": values[key] for suffix, key in _COLUMNS.items()})

        def add_refit(name: str, family: VariationalFamily) -> RefitResult:
            share = 1.0 if self.richer is None else 0.5
            result = refit(family, target, self.settings, lambda done: advance(done * share))
            add(name, result.log_weights(self.num_samples))
            columns[f"{name}_late"] = result.late_gain
            columns[f"{name}_remaining"] = result.remaining
            columns[f"{name}_better"] = result.improved.double()
            return result

        add("elbo", [audited_log_weights(inputs, self.num_samples)])
        family = extract_family(inputs) if self.family is None else None
        target = make_target_density(inputs, layout, constrained=family is not None)
        if family is None:
            assert self.family is not None  # set by _resolve
            u = target.sample_guide(_NUM_MOMENT_SAMPLES)
            family = make_family(self.family, x, u.mean(0), u.std(0))
        refitted = add_refit("refitted", family)
        if self.richer is not None:
            moments = refitted.family.moments(refitted.params, _NUM_MOMENT_SAMPLES)
            add_refit("richer", make_family(self.richer, x, *moments))
        return columns

    def _resolve(self, inputs: ProgramInputs) -> _GapEvaluation:
        own_family = extract_family(inputs) if self.family is None else None
        if own_family is None:
            family = self.family or choose_family(inputs)
            name = get_family_name(family)
        else:
            family, name = None, own_family.name
            space = own_family.posterior.space
            if self.richer is not None and space is not Posterior.space:
                raise ValueError(
                    f"expected latents in {Posterior.space} to refit a richer family; got latents "
                    f"of {name} on {space}: set richer=None"
                )
        is_same = self.richer is not None and get_family_name(self.richer) == name
        return replace(self, family=family, richer=None if is_same else self.richer, name=name)


def _append_suffix(checkpoint: Path | None, part: str) -> Path | None:
    if checkpoint is None:
        return None
    return Path(checkpoint).with_name(f"{Path(checkpoint).name}.{part}")


def _compute(
    program: Program,
    dataset: Dataset,
    *,
    split: SplitName = "test",
    num_data: int | None = 100,
    train: bool = False,
    family: str | None = None,
    richer: str | None = "FullCovarianceNormal",
    annealing: Annealing = Annealing(),
    no_ais: bool = False,
    **options: Any,
) -> Gaps:
    """Split log p(x) − ELBO into the amortisation gap and the approximation gap.

    Arguments:
        split: data split.
        num_data: use only the first examples of the split.
        train: compare with the same number of training examples.
        family: variational family to refit instead of the model's own, e.g. DiagonalNormal.
        richer: richer variational family, to see how much of the gap it closes, or null.
        annealing: annealed importance sampling.
        no_ais: use importance sampling only, without AIS.
    """
    if train and split in ("train", "all"):
        raise ValueError(
            f"expected a split without training examples to compare with these; got split "
            f"{split!r}: drop --train or set --split"
        )
    examples = dataset.take(split, num_data)
    return gaps(
        program,
        examples,
        train=dataset.train.head(len(examples)) if train else None,
        family=_find_family("family", family),
        richer=_find_family("richer", richer),
        annealing=None if no_ais else annealing,
        **options,
    )


def _find_family(option: str, name: str | None) -> FamilyFactory | None:
    if name is None:
        return None
    known = [n for n in posteriors.__all__ if n != "Posterior"]
    if name not in known:
        raise ValueError(
            f"expected {option} to be one of {', '.join(known)}; got {name!r}"
            f"{did_you_mean(name, known)}"
        )
    return getattr(posteriors, name)


GAPS = Evaluation(
    name="gaps",
    title="Inference gaps",
    compute=_compute,
    function=gaps,
    result=Gaps,
    make_section=make_section,
)
