"""``fit``: Pyro's SVI over minibatches, repeatable and resumable."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm import tqdm

from ..core import distributed
from ..core.random import check_seed, seeded
from ..core.validation import positive_int
from ..data.splits import Split, checksum, materialize
from ..programs.base import Program
from ..programs.importance_weights import log_weights
from ..programs.inputs import check_data, program_args, program_labels
from . import checkpoint as checkpoints
from .batches import Batches
from .cuda_graph import make_capturable
from .diagnostics import NonFiniteLossError, check_weights
from .epochs import TRAINING, Epochs, updates
from .history import History
from .initialization import initialize, starts_from_data
from .objectives import ELBO
from .optimizers import FusedOptimizer
from .sharding import check_decomposable

__all__ = ["find_device", "fit"]


#: The streams of random numbers that one seed feeds.
_VALIDATION, _WARM_UP, _START = TRAINING + 1, TRAINING + 2, TRAINING + 3


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
    labelled_every: int | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    compile: bool | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    on_epoch: Callable[[History], None] | None = None,
    progress: bool = False,
) -> History:
    """Learns a Pyro program by stochastic variational inference.

    The data stay on the device; minibatches are gathered there by index and, if asked for,
    binarised there. On one machine, one seed gives the same weights bit for bit, whether the
    run was interrupted and resumed or not.

    Several processes (see :func:`~pyro_vae.distributed.launched`) that all call this share every
    minibatch, and sum their gradients before these are clipped: each step is that of one process
    with the whole minibatch, but for rounding and for which random numbers there are, because
    every process draws its own. All start from the first one's weights, hold the same at any time,
    and return the same history, seconds apart. The first alone writes the checkpoint, which any
    number of processes may resume from. What is no sum over the data is refused: free bits, batch
    norm, a likelihood whose scale is at its best for each minibatch, ``MonteCarloEM``.

    Arguments:
        program: an ``nn.Module`` (a ``PyroModule``) with ``model(x)`` and ``guide(x)``, whose
            parameters are its own; it is trained in place and left on the device. One that
            conditions on labels is called ``(x, labels)``; one that learns from them where they
            are known, ``(x, labels)`` on minibatches where they are and ``(x)`` on others.
        train: the training data, a ``Split`` if they have labels.
        valid: validation data, whose ELBO is computed after every epoch with fixed noise.
        objective: a Pyro ``ELBO``; the package's :class:`~pyro_vae.objectives.ELBO` if not given.
        optimizer: makes the torch optimiser of all parameters: a class of ``torch.optim``,
            or a ``partial`` of one.
        schedule: ``schedule(optimizer)`` makes a torch learning-rate schedule, stepped after
            every epoch (``ReduceLROnPlateau`` watches the validation ELBO).
        epochs: passes over the training data.
        batch_size: data in a minibatch, of all processes together; the last of an epoch may be
            smaller.
        labelled_every: for a program that learns with and without labels: after so many
            minibatches without comes one with labels, from the start again as often as needed,
            and an epoch is a pass over the data without. Every datum once if not given.
        clip_norm: the largest norm of the gradient, which is that of the minibatch's sum.
        patience: stop when the validation ELBO has not risen for so many epochs, and go back
            to the weights of the best epoch.
        seed: of the order of the data, the binarisation and the draws; on the command line
            also of the initial weights, which in Python are made earlier, with the program.
        device: ``cuda``, ``cpu``, or ``auto`` for the first that is there.
        compile: whether a step is one compiled graph (``learning.CompiledSVI``) where it can be,
            which takes some seconds at first; ``None`` for the steps after the first 2500. Both
            take the same draws, and differ by rounding.
        checkpoint: a file to write the state to.
        checkpoint_every: after how many epochs; the last one is always written. More than one
            where there are so few data that writing takes longer than an epoch does.
        resume: go on from that file, if it exists.
        on_epoch: called after every epoch.
        progress: show a progress bar on the standard error, in the first process.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: for data that the program cannot score, labels that it needs and that are
            not there, numbers out of range, a missing CUDA device, or a program whose
            parameters are not its own; of several processes, if they were told different things,
            or if a minibatch of this objective or program has no parts.
        CheckpointError: if the checkpoint is damaged, foreign, or of other settings.
        NonFiniteLossError: if the loss becomes NaN or infinite, naming epoch, step and site.
        ConnectionError: if another process has ended.
    """
    positive_int("epochs", epochs)
    positive_int("batch_size", batch_size)
    positive_int("checkpoint_every", checkpoint_every)
    check_seed(seed)
    if patience is not None:
        positive_int("patience", patience)
        if valid is None:
            raise ValueError("patience watches the validation ELBO: expected valid data; got none")
    place = find_device(device)
    batches = Batches(program, train, batch_size, labelled_every)
    for data in (train, valid):
        if data is not None:
            check_data(program, data, seed)
    if starts_from_data(program):
        # before both move to the device, where the data need not be laid out a second time
        with seeded(seed, _START):
            initialize(program, materialize(train, seed))
    shapes = {name: list(p.shape) for name, p in program.named_parameters()}
    held = None if valid is None else len(valid)
    # what processes say to each other from here on depends on these
    distributed.check_same_across_ranks(
        {"parameters": shapes, "number of data": (len(train), held)}
    )
    program.to(place)
    distributed.broadcast_parameters(program)
    batches.to(place)
    held_out = (
        () if valid is None else tuple(t.to(place) for t in program_args(program, valid, seed))
    )
    pair = cast(Program, program)
    loss: Any = objective if objective is not None else ELBO()
    path = Path(checkpoint) if checkpoint is not None else None
    several, first = distributed.world_size() > 1, distributed.is_main_process()

    # a parameter store of its own: other models in the process may use the same names
    with pyro.get_param_store().scope(), _training(program):
        check_decomposable(program, loss, batches)
        _warm_up(program, loss, batches, seed)
        if held_out:
            # what it refuses, it refuses now
            _validate(pair, tuple(t[:batch_size] for t in held_out), seed)
        optim = FusedOptimizer(
            optimizer, clip_norm, distributed.all_reduce_gradients if several else None
        )
        optim.add(dict(program.named_parameters()))
        assert optim.optimizer is not None
        if compile is not False and place.type == "cuda":
            make_capturable(optim.optimizer)
        scheduler = schedule(optim.optimizer) if schedule else None
        settings = {
            "seed": seed,
            "batch_size": batch_size,
            "clip_norm": clip_norm,
            "patience": patience,
            "data": [_checksum(program, train), *([checksum(held_out)] if held_out else [])],
            "parameters": shapes,
            "objective": [type(loss).__name__, _plain(vars(loss))],
            "optimizer": [type(optim.optimizer).__name__, _plain(optim.optimizer.defaults)],
            "schedule": type(scheduler).__name__ if scheduler else None,
            "labelled_every": labelled_every,
        }
        state = checkpoints.State(program, optim, scheduler, loss, settings)
        going_on = resume and path is not None and path.exists()
        distributed.check_same_across_ranks(
            {**settings, "epochs": epochs, "checkpoint": going_on, "compile": compile}
        )
        if going_on:
            state.load(cast(Path, path), epochs)
        history = state.history
        passes = Epochs(program, loss, optim, batches, seed, compile)
        with _bar(progress and first, epochs, len(batches), len(history)) as bar:
            for epoch in range(len(history) + 1, epochs + 1):
                if state.stale(patience):
                    break
                start = time.perf_counter()
                lr = float(optim.optimizer.param_groups[0]["lr"])
                before = passes.compile_seconds
                elbo = passes.run(epoch, bar)
                _check_parameters(program, optim)
                record = {
                    "epoch": epoch,
                    "step": epoch * len(batches) * updates(loss),
                    "elbo": elbo,
                    "lr": lr,
                }
                if held_out:
                    record["valid_elbo"] = _validate(pair, held_out, seed)
                _check_finite(program, record)
                _advance(scheduler, record)
                record["seconds"] = time.perf_counter() - start
                if passes.compile_seconds > before:
                    record["compile_seconds"] = passes.compile_seconds - before
                state.record(record)
                due = epoch % checkpoint_every == 0 or epoch == epochs or state.stale(patience)
                if path is not None and first and due:
                    checkpoints.save(path, state.as_dict())
                if on_epoch is not None:
                    on_epoch(history)
    if patience is not None:
        state.restore_best()
    return history


def _warm_up(program: nn.Module, objective: Any, batches: Batches, seed: int) -> None:
    """Lets the objective look at the program: it may choose an estimator, or count plates.

    That takes draws. Taken in the first step, a resumed run would take them in a later one.
    """
    program.eval()
    pair = cast(Program, program)
    with seeded(seed, _WARM_UP), torch.no_grad(), pyro.validation_enabled(False):
        for args in batches.first():
            objective.loss(pair.model, pair.guide, *args)
    program.train()


def _validate(program: Program, args: tuple[Tensor, ...], seed: int) -> float:
    """The ELBO of data that the processes share."""
    mine = tuple(t[distributed.shard(len(args[0]))] for t in args)
    total = 0.0
    # the same noise after every epoch, so that epochs differ by their weights alone
    with seeded(seed, _VALIDATION, *distributed.rank_entropy()), pyro.validation_enabled(False):
        if len(mine[0]):
            log_w = log_weights(program.model, program.guide, *mine, num_samples=1)
            total = float(log_w.double().sum())
    return sum(distributed.all_gather(total)) / len(args[0])


def _advance(scheduler: LRScheduler | None, record: dict[str, Any]) -> None:
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(-record.get("valid_elbo", record["elbo"]))
    elif scheduler is not None:
        scheduler.step()


def find_device(name: str) -> torch.device:
    """The device of that name: ``cuda``, ``cpu``, or ``auto`` for the first that is there.

    Of several processes on a machine each has a GPU of its own.

    Raises:
        ValueError: if the name is another, or if CUDA is asked for where there is none, or less
            than a GPU for each process of this machine.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"expected device to be auto, cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device; torch finds none here: use device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return distributed.local_device()


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


def _checksum(program: nn.Module, data: Split | Tensor) -> str:
    """Of the data, and of the labels that the program looks at."""
    values = data.values if isinstance(data, Split) else data
    labels = program_labels(program, data)
    return checksum([values] if labels is None else [values, labels])


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The public entries that are numbers, words or tuples of them: what a file can hold."""
    kinds = (bool, int, float, str, tuple, type(None))
    plain = {k: repr(v) if is_dataclass(v) else v for k, v in values.items()}
    return {k: v for k, v in plain.items() if isinstance(v, kinds) and not k.startswith("_")}


def _check_parameters(program: nn.Module, optim: FusedOptimizer) -> None:
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


def _bar(progress: bool, epochs: int, steps: int, done: int) -> tqdm:
    return tqdm(
        total=epochs * steps,
        initial=done * steps,
        unit=" steps",
        disable=not progress,
        dynamic_ncols=True,
        bar_format="{desc}/" + str(epochs) + " |{bar}| {postfix}, {remaining} left",
    )
