"""What the slower rulers say of a run: each writes a file and an entry of ``result.json``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .. import evaluation
from ..core.components import Labels
from ..core.validation import positive_int
from ..data import Split
from ..evaluation import Bounds
from ..evaluation.annealing.rate_distortion_curve import RateDistortion
from ..evaluation.annealing.rate_distortion_curve import rate_distortion as trace_out
from ..evaluation.inference_gaps.estimator import Gaps
from ..evaluation.inference_gaps.estimator import gaps as take_apart
from ..evaluation.latent_diagnostics.kl import Divergences, divergences
from ..evaluation.latent_diagnostics.summary import Latents
from ..evaluation.latent_diagnostics.summary import latents as look_into
from ..learning.training import find_device
from ..models import Autoencoder
from ..programs.base import label_use
from .provenance import measure
from .run import Run

__all__ = ["bdmc", "gaps", "latents", "rate_distortion"]


class _Result(Protocol):
    def summary(self) -> dict[str, Any]: ...

    def to_netcdf(self, path: Path) -> None: ...


_Measured = TypeVar("_Measured", bound=_Result)


def bdmc(
    run: Run, num_data: int = 64, num_samples: int = 5000, device: str = "auto", **options: Any
) -> Bounds:
    """log p(x) of data simulated by a run's model, enclosed; writes ``bdmc.nc``.

    Arguments:
        run: the run.
        num_data: how many data to simulate. What they are conditioned on, if the model asks
            for it, is that of the first test data.
        num_samples: draws of importance sampling on the same data; 0 for none.
        device: ``auto``, ``cpu`` or ``cuda``.
        **options: for :func:`~pyro_vae.evaluation.bdmc`.

    Raises:
        RunError: if the run is not finished.
        ValueError: if there are fewer conditions than data, or if the model does not allow it.
    """
    place = find_device(device)
    _, data, model = run.open()
    simulated: int | Split = positive_int("num_data", num_data)
    if label_use(model) is Labels.CONDITION:
        simulated = data.test.head(num_data)
        if len(simulated) < num_data:
            raise ValueError(
                f"expected num_data of at most {len(simulated)}, for each has the label of one of "
                f"the test data; got {num_data}"
            )
    model.to(place)
    options = {"num_samples": num_samples, **options}
    return _measured(
        *(run, "bdmc", model),
        lambda file: evaluation.bdmc(model, simulated, checkpoint=file, **options),
    )


def gaps(
    run: Run,
    split: str = "test",
    num_data: int | None = 100,
    train: bool = False,
    device: str = "auto",
    **options: Any,
) -> Gaps:
    """How much of log p(x) − ELBO is the encoder's fault; writes ``gaps.nc``.

    Arguments:
        run: the run.
        split: ``test``, ``valid`` or ``train``.
        num_data: only the first so many data.
        train: compare with as many training data.
        device: ``auto``, ``cpu`` or ``cuda``.
        **options: for :func:`~pyro_vae.evaluation.inference_gaps.estimator.gaps`.

    Raises:
        RunError: if the run is not finished.
        ValueError: if the split is empty, for numbers out of range, or if the model does not
            allow it.
    """
    _, data, model, part = run.opened(split, num_data, device)
    if train and split == "train":
        raise ValueError(
            "expected other data than those for training to compare with them; got split 'train': "
            "leave one of the two out"
        )
    others = data.train.head(len(part)) if train else None
    return _measured(
        *(run, "gaps", model),
        lambda file: take_apart(model, part, train=others, checkpoint=file, **options),
        split=split,
    )


def latents(
    run: Run,
    split: str = "test",
    num_data: int | None = None,
    device: str = "auto",
    **options: Any,
) -> Latents:
    """What the latents of a run carry; writes ``latents.nc``.

    Arguments:
        run: the run.
        split: ``test``, ``valid`` or ``train``.
        num_data: only the first so many data.
        device: ``auto``, ``cpu`` or ``cuda``.
        **options: for :func:`~pyro_vae.evaluation.latents`.

    Raises:
        RunError: if the run is not finished.
        ValueError: if the split is empty, or for numbers out of range.
    """
    _, _, model, part = run.opened(split, num_data, device)
    return _measured(
        run, "latents", model, lambda _: look_into(model, part, **options), split=split
    )


def rate_distortion(
    run: Run,
    split: str = "test",
    num_data: int | None = 100,
    device: str = "auto",
    seed: int = 0,
    **options: Any,
) -> tuple[RateDistortion, Divergences]:
    """The rate–distortion curve of a run's model; writes ``rate_distortion.nc``.

    Arguments:
        run: the run.
        split: ``test``, ``valid`` or ``train``.
        num_data: only the first so many data.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: of all draws.
        **options: for :func:`~pyro_vae.evaluation.annealing.rate_distortion_curve.rate_distortion`.

    Returns:
        the curve, and what the encoder itself spends on the same data.

    Raises:
        RunError: if the run is not finished.
        ValueError: if the split is empty, for numbers out of range, or if the model does not
            allow it.
    """
    _, _, model, part = run.opened(split, num_data, device)
    own = divergences(model, part, seed=seed)
    point = {name: own.summary()["estimates"][name] for name in ("rate", "distortion")}
    curve = _measured(
        *(run, "rate_distortion", model),
        lambda file: trace_out(model, part, seed=seed, checkpoint=file, **options),
        split=split,
        own=point,
    )
    return curve, own


def _measured(
    run: Run,
    name: str,
    model: Autoencoder,
    work: Callable[[Path], _Measured],
    **told: Any,
) -> _Measured:
    """The result of ``work(checkpoint)``, after it was written; the checkpoint is then gone."""
    start = time.perf_counter()
    result = work(run.unfinished(name))
    result.to_netcdf(run.ruler(name))
    summary = {**told, **result.summary(), "measure": measure(model)}
    run.record(name, summary, model, start)
    run.forget(name)
    return result
