"""Diagnostics of a run: each writes ``NAME.nc`` and an entry of ``result.json``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .. import evaluation
from ..core.components import Labels
from ..core.validation import positive_int
from ..data import Split
from ..evaluation import Bounds, Divergences, Gaps, Latents, RateDistortion
from ..learning.training import resolve_device
from ..models import Autoencoder
from ..programs.base import label_use
from .provenance import likelihood_measure
from .run import Run

__all__ = ["evaluate_bdmc", "evaluate_gaps", "evaluate_latents", "evaluate_rate_distortion"]


class _Result(Protocol):
    def summary(self) -> dict[str, Any]: ...

    def to_netcdf(self, path: Path) -> None: ...


_AnyResult = TypeVar("_AnyResult", bound=_Result)


def evaluate_bdmc(
    run: Run, num_data: int = 64, num_samples: int = 5000, device: str = "auto", **options: Any
) -> Bounds:
    """Bound log p(x) of simulated data from both sides; writes ``bdmc.nc``.

    Arguments:
        run: the run.
        num_data: number of examples to simulate. A conditional model gets the labels of the
            first test examples.
        num_samples: importance samples per example, for comparison; 0 for none.
        device: ``auto``, ``cpu`` or ``cuda``.
        **options: passed to :func:`~pyro_vae.evaluation.bdmc`.

    Raises:
        RunError: if the run is not finished.
        ValueError: if there are fewer labels than examples, or if the model is not supported.
    """
    torch_device = resolve_device(device)
    _, data, model = run.open()
    simulated: int | Split = positive_int("num_data", num_data)
    if label_use(model) is Labels.CONDITION:
        simulated = data.test.head(num_data)
        if len(simulated) < num_data:
            raise ValueError(
                f"expected num_data of at most {len(simulated)}, the number of test examples whose "
                f"labels the model can be conditioned on; got {num_data}"
            )
    model.to(torch_device)
    options = {"num_samples": num_samples, **options}
    return _evaluate_and_save(
        *(run, "bdmc", model),
        lambda file: evaluation.bdmc(model, simulated, checkpoint=file, **options),
    )


def evaluate_gaps(
    run: Run,
    split: str = "test",
    num_data: int | None = 100,
    train: bool = False,
    device: str = "auto",
    **options: Any,
) -> Gaps:
    """Split log p(x) − ELBO into inference gaps; writes ``gaps.nc``.

    Arguments:
        run: the run.
        split: ``test``, ``valid`` or ``train``.
        num_data: use only the first examples of the split.
        train: compare with the same number of training examples.
        device: ``auto``, ``cpu`` or ``cuda``.
        **options: passed to :func:`~pyro_vae.evaluation.inference_gaps.estimator.gaps`.

    Raises:
        RunError: if the run is not finished.
        ValueError: if the split is empty, if a number is out of range, or if the model is not
            supported.
    """
    _, data, model, examples = run.open_split(split, num_data, device)
    if train and split == "train":
        raise ValueError(
            "expected a split other than train to compare with the training examples; got split "
            "'train': drop --train or set --split"
        )
    train_examples = data.train.head(len(examples)) if train else None
    return _evaluate_and_save(
        *(run, "gaps", model),
        lambda file: evaluation.gaps(
            model, examples, train=train_examples, checkpoint=file, **options
        ),
        split=split,
    )


def evaluate_latents(
    run: Run,
    split: str = "test",
    num_data: int | None = None,
    device: str = "auto",
    **options: Any,
) -> Latents:
    """Compute the latent diagnostics of a run; writes ``latents.nc``.

    Arguments:
        run: the run.
        split: ``test``, ``valid`` or ``train``.
        num_data: use only the first examples of the split.
        device: ``auto``, ``cpu`` or ``cuda``.
        **options: passed to :func:`~pyro_vae.evaluation.latents`.

    Raises:
        RunError: if the run is not finished.
        ValueError: if the split is empty, or if a number is out of range.
    """
    _, _, model, examples = run.open_split(split, num_data, device)
    return _evaluate_and_save(
        *(run, "latents", model),
        lambda _: evaluation.latents(model, examples, **options),
        split=split,
    )


def evaluate_rate_distortion(
    run: Run,
    split: str = "test",
    num_data: int | None = 100,
    device: str = "auto",
    seed: int = 0,
    **options: Any,
) -> tuple[RateDistortion, Divergences]:
    """Compute the rate–distortion curve of a run's model; writes ``rate_distortion.nc``.

    Arguments:
        run: the run.
        split: ``test``, ``valid`` or ``train``.
        num_data: use only the first examples of the split.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: seed of sampling.
        **options: passed to
            :func:`~pyro_vae.evaluation.annealing.rate_distortion_curve.rate_distortion`.

    Returns:
        The curve, and the rate and distortion of q(z|x) on the same examples.

    Raises:
        RunError: if the run is not finished.
        ValueError: if the split is empty, if a number is out of range, or if the model is not
            supported.
    """
    _, _, model, examples = run.open_split(split, num_data, device)
    own = evaluation.divergences(model, examples, seed=seed)
    own_estimates = {name: own.summary()["estimates"][name] for name in ("rate", "distortion")}
    curve = _evaluate_and_save(
        *(run, "rate_distortion", model),
        lambda file: evaluation.rate_distortion(
            model, examples, seed=seed, checkpoint=file, **options
        ),
        split=split,
        own=own_estimates,
    )
    return curve, own


def _evaluate_and_save(
    run: Run,
    name: str,
    model: Autoencoder,
    compute: Callable[[Path], _AnyResult],
    **entries: Any,
) -> _AnyResult:
    """Save and return the result of ``compute(checkpoint)``, then remove the checkpoint."""
    start = time.perf_counter()
    result = compute(run.checkpoint_file(name))
    result.to_netcdf(run.evaluation_file(name))
    summary = {**entries, **result.summary(), "measure": likelihood_measure(model)}
    run.record(name, summary, model, start)
    run.remove_checkpoint(name)
    return result
