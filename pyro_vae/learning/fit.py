"""``fit``: Pyro's SVI over minibatches, repeatable and resumable."""

from __future__ import annotations

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from pyro.infer import SVI
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from .._component import positive
from .._programs import Program
from .._random import check_seed, seeded
from ..data.datasets import Split
from ..particles import log_weights
from . import checkpoint as checkpoints
from .diagnosis import NonFiniteLossError, check_weights, guarded
from .initialize import initialize, starts_from_data
from .objectives import ELBO, Objective
from .objectives.base import Moment
from .optim import Joint
from .schedules import Schedule

__all__ = ["History", "find_device", "fit"]


#: The streams of random numbers that one seed feeds.
_TRAINING, _VALIDATION, _WARM_UP, _START = 0, 1, 2, 3


@dataclass
class History:
    """What happened in each epoch.

    ``history["elbo"]`` is a list over epochs. The columns are ``epoch``, ``step`` (updates so
    far), ``elbo`` (the objective, averaged over the epoch's minibatches), ``valid_elbo`` (the
    ELBO of the validation data after the epoch, if there are any), both in nats per datum,
    ``lr`` and ``seconds``.

    Attributes:
        epochs: one mapping for each epoch.
        best_epoch: the epoch whose weights were kept, if training could stop early.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, column: str) -> list[Any]:
        return [epoch[column] for epoch in self.epochs]


def fit(
    program: nn.Module,
    train: Split | Tensor,
    *,
    valid: Split | Tensor | None = None,
    objective: PyroELBO | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.Adam,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    epochs: int = 50,
    batch_size: int = 100,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    checkpoint: Path | str | None = None,
    resume: bool = False,
    on_epoch: Callable[[History], None] | None = None,
    progress: bool = False,
) -> History:
    """Learns a Pyro program by stochastic variational inference.

    The data stay on the device; minibatches are gathered there by index and, if asked for,
    binarised there. On one machine, one seed gives the same weights bit for bit, whether the
    run was interrupted and resumed or not.

    Arguments:
        program: an ``nn.Module`` (a ``PyroModule``) with ``model(x)`` and ``guide(x)``, whose
            parameters are its own; it is trained in place and left on the device.
        train: the training data.
        valid: validation data, whose ELBO is computed after every epoch with fixed noise.
        objective: a Pyro ``ELBO``; the package's :class:`~pyro_vae.objectives.ELBO` if not given.
        optimizer: makes the torch optimiser of all parameters: a class of ``torch.optim``,
            or a ``partial`` of one.
        schedule: ``schedule(optimizer)`` makes a torch learning-rate schedule, stepped after
            every epoch (``ReduceLROnPlateau`` watches the validation ELBO).
        epochs: passes over the training data.
        batch_size: data in a minibatch; the last of an epoch may be smaller.
        clip_norm: the largest norm of the gradient, which is that of the minibatch's sum.
        patience: stop when the validation ELBO has not risen for so many epochs, and go back
            to the weights of the best epoch.
        seed: of the order of the data, the binarisation and the draws; on the command line
            also of the initial weights, which in Python are made earlier, with the program.
        device: ``cuda``, ``cpu``, or ``auto`` for the first that is there.
        checkpoint: a file to write the state to after every epoch.
        resume: go on from that file, if it exists.
        on_epoch: called after every epoch.
        progress: show a progress bar on the standard error.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: for data that the program cannot score, numbers out of range, a missing
            CUDA device, or a program whose parameters are not its own.
        CheckpointError: if the checkpoint is damaged, foreign, or of other settings.
        NonFiniteLossError: if the loss becomes NaN or infinite, naming epoch, step and site.
    """
    positive("epochs", epochs)
    positive("batch_size", batch_size)
    check_seed(seed)
    if patience is not None:
        positive("patience", patience)
        if valid is None:
            raise ValueError("patience watches the validation ELBO: expected valid data; got none")
    place = find_device(device)
    if not len(train):
        raise ValueError("expected at least one datum to train on; got none")
    _check_batches(program, len(train), batch_size)
    for data in (train, valid):
        if data is not None and hasattr(program, "check"):
            program.check(_fixed(data, seed))  # type: ignore[operator]
    if starts_from_data(program):
        # before both move to the device, where the data need not be laid out a second time
        with seeded(seed, _START):
            initialize(program, _fixed(train, seed))
    program.to(place)
    train = train.to(place)
    x_valid = None if valid is None else _fixed(valid, seed).to(place)
    pair = cast(Program, program)
    loss: Any = objective if objective is not None else ELBO()
    path = Path(checkpoint) if checkpoint is not None else None

    # a parameter store of its own: other models in the process may use the same names
    with pyro.get_param_store().scope(), _training(program):
        _warm_up(program, loss, _first(train, batch_size), seed)
        if x_valid is not None:
            _validate(pair, x_valid[:batch_size], seed)  # what it refuses, it refuses now
        optim = Joint(optimizer, clip_norm)
        optim.add(dict(program.named_parameters()))
        assert optim.optimizer is not None
        scheduler = schedule(optim.optimizer) if schedule else None
        settings = {
            "seed": seed,
            "batch_size": batch_size,
            "clip_norm": clip_norm,
            "patience": patience,
            "data": [_checksum(d) for d in (train, x_valid) if d is not None],
            "parameters": {name: list(p.shape) for name, p in program.named_parameters()},
            "objective": [type(loss).__name__, _plain(vars(loss))],
            "optimizer": [type(optim.optimizer).__name__, _plain(optim.optimizer.defaults)],
            "schedule": type(scheduler).__name__ if scheduler else None,
        }
        state = _State(program, optim, scheduler, settings)
        if resume and path is not None and path.exists():
            state.load(path, epochs)
        history = state.history
        step = guarded(loss, program)
        svi = SVI(pair.model, pair.guide, optim, loss=loss.loss, loss_and_grads=step)
        with _bar(progress, epochs, len(train), batch_size, len(history)) as bar:
            for epoch in range(len(history) + 1, epochs + 1):
                if state.stale(patience):
                    break
                start = time.perf_counter()
                lr = optim.optimizer.param_groups[0]["lr"]
                elbo = _epoch(svi, loss, train, epoch, batch_size, seed, bar)
                _check_parameters(program, optim)
                record = {
                    "epoch": epoch,
                    "step": epoch * -(-len(train) // batch_size),
                    "elbo": elbo,
                    "lr": lr,
                }
                if x_valid is not None:
                    record["valid_elbo"] = _validate(pair, x_valid, seed)
                _check_finite(program, record)
                _advance(scheduler, record)
                record["seconds"] = time.perf_counter() - start
                state.record(record)
                if path is not None:
                    checkpoints.save(path, state.as_dict())
                if on_epoch is not None:
                    on_epoch(history)
    if patience is not None:
        state.restore_best()
    return history


class _State:
    """Everything that an interrupted fit needs to go on."""

    def __init__(
        self, program: nn.Module, optim: Joint, scheduler: LRScheduler | None, settings: dict
    ) -> None:
        self.program, self.optim, self.scheduler = program, optim, scheduler
        self.settings = settings
        self.history = History()
        self.best: dict[str, Any] | None = None

    def record(self, record: dict[str, Any]) -> None:
        self.history.epochs.append(record)
        if self.settings["patience"] is None:
            return
        if self.best is None or record["valid_elbo"] > self.best["valid_elbo"]:
            weights = copy.deepcopy(self.program.state_dict())
            self.best = {**record, "weights": weights}
            self.history.best_epoch = record["epoch"]

    def stale(self, patience: int | None) -> bool:
        if patience is None or self.best is None:
            return False
        return len(self.history) - self.best["epoch"] >= patience

    def restore_best(self) -> None:
        if self.best is not None:
            self.program.load_state_dict(self.best["weights"])

    def as_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "history": self.history.epochs,
            "weights": self.program.state_dict(),
            "optimizer": self.optim.get_state(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "best": self.best,
        }

    def load(self, path: Path, epochs: int) -> None:
        state = checkpoints.load(path)
        wrong = [k for k, v in self.settings.items() if state["settings"].get(k) != v]
        if wrong:
            raise checkpoints.CheckpointError(
                f"{path} belongs to a fit with another {', '.join(wrong)}: resume with the "
                f"settings it was started with, or fit anew elsewhere"
            )
        if len(state["history"]) > epochs:
            raise checkpoints.CheckpointError(
                f"{path} is already at epoch {len(state['history'])}: expected epochs to be at "
                f"least that; got {epochs}"
            )
        self.program.load_state_dict(state["weights"])
        self.optim.set_state(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.history.epochs = state["history"]
        self.best = state["best"]
        self.history.best_epoch = self.best["epoch"] if self.best else None


def _epoch(
    svi: SVI,
    objective: Any,
    train: Split | Tensor,
    epoch: int,
    batch_size: int,
    seed: int,
    bar: tqdm,
) -> float:
    """One pass over the data; the mean objective in nats per datum."""
    total, seen = 0.0, 0
    device = train.values.device if isinstance(train, Split) else train.device
    bar.set_description(f"epoch {epoch}")
    # the epoch's own stream: to resume, nothing of the generators needs to be stored
    with seeded(seed, _TRAINING, epoch), pyro.validation_enabled(False):
        order = torch.randperm(len(train)).to(device)
        batches = order.split(batch_size)
        for step, index in enumerate(batches, 1):
            if isinstance(objective, Objective):
                passed = epoch - 1 + (step - 1) / len(batches)
                objective.at(Moment(passed, len(train), index))
            x = train.draw(index) if isinstance(train, Split) else train[index]
            try:
                total -= cast(float, svi.step(x))
            except NonFiniteLossError as error:
                error.where = f" in epoch {epoch}, step {step}"
                raise
            seen += len(index)
            bound = f"{type(objective).__name__} {total / seen:.2f} nats/datum"
            bar.set_postfix_str(bound, refresh=False)
            bar.update()
    return total / seen


def _warm_up(program: nn.Module, objective: Any, x: Tensor, seed: int) -> None:
    """Lets the objective look at the program: it may choose an estimator, or count plates.

    That takes draws. Taken in the first step, a resumed run would take them in a later one.
    """
    program.eval()
    pair = cast(Program, program)
    with seeded(seed, _WARM_UP), torch.no_grad(), pyro.validation_enabled(False):
        objective.loss(pair.model, pair.guide, x)
    program.train()


def _first(data: Split | Tensor, size: int) -> Tensor:
    return _fixed(data.head(size) if isinstance(data, Split) else data[:size], 0)


def _validate(program: Program, x: Tensor, seed: int) -> float:
    # the same noise after every epoch, so that epochs differ by their weights alone
    with seeded(seed, _VALIDATION), pyro.validation_enabled(False):
        return float(log_weights(program.model, program.guide, x, num_samples=1).double().mean())


def _advance(scheduler: LRScheduler | None, record: dict[str, Any]) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(-record.get("valid_elbo", record["elbo"]))
    elif scheduler is not None:
        scheduler.step()


def find_device(name: str) -> torch.device:
    """The device of that name: ``cuda``, ``cpu``, or ``auto`` for the first that is there.

    Raises:
        ValueError: if the name is another, or if CUDA is asked for where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"expected device to be auto, cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device; torch finds none here: use device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _fixed(data: Split | Tensor, seed: int) -> Tensor:
    return data.fixed(seed) if isinstance(data, Split) else data


def _check_finite(program: nn.Module, record: dict[str, Any]) -> None:
    """What would spoil the checkpoint is noticed before it is written."""
    try:
        check_weights(program)
        if math.isnan(record.get("valid_elbo", 0.0)):
            cause = "the log weights of a validation datum are NaN"
            raise NonFiniteLossError("the validation ELBO became NaN", "", cause)
    except NonFiniteLossError as error:
        error.where = f" at the end of epoch {record['epoch']}"
        raise


def _check_batches(program: nn.Module, size: int, batch_size: int) -> None:
    """What would end the first epoch at its last minibatch is refused before it."""
    mixes = any(isinstance(m, _BatchNorm) for m in program.modules())
    if mixes and (size - 1) % batch_size == 0:
        raise ValueError(
            f"batch norm needs statistics: expected at least 2 data in every minibatch; got 1 in "
            f"the last of {size} data by {batch_size}: choose another batch_size"
        )


def _checksum(data: Split | Tensor) -> str:
    values = data.values if isinstance(data, Split) else data
    return hashlib.sha256(values.contiguous().cpu().numpy().tobytes()).hexdigest()


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The public entries that are numbers, words or tuples of them: what a file can hold."""
    kinds = (bool, int, float, str, tuple, type(None))
    plain = {k: repr(v) if isinstance(v, Schedule) else v for k, v in values.items()}
    return {k: v for k, v in plain.items() if isinstance(v, kinds) and not k.startswith("_")}


def _check_parameters(program: nn.Module, optim: Joint) -> None:
    own = set(program.parameters())
    foreign = [name for name, p in optim.parameters.items() if p not in own]
    if foreign:
        raise ValueError(
            f"parameter {foreign[0]!r} is made by pyro.param inside the program and would not be "
            f"saved with it: make it an nn.Parameter or a PyroParam of the program"
        )


@contextmanager
def _training(program: nn.Module) -> Iterator[None]:
    """Training mode, without Pyro's warnings of a loss that is NaN: that is an error here."""
    before = program.training
    program.train()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered NaN")
        try:
            yield
        finally:
            program.train(before)


def _bar(progress: bool, epochs: int, size: int, batch_size: int, done: int) -> tqdm:
    steps = -(-size // batch_size)
    return tqdm(
        total=epochs * steps,
        initial=done * steps,
        unit=" steps",
        disable=not progress,
        dynamic_ncols=True,
        bar_format="{desc}/" + str(epochs) + " |{bar}| {postfix}, {remaining} left",
    )
