"""Training with ``fit``: reproducible, resumable SVI over minibatches."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyro
import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..compiler.matmul import TrainingPrecision, check_training_precision
from ..core import distributed
from ..core.evaluation_mode import eval_mode, keep_frozen
from ..core.random import Stream, check_seed, seeded
from ..core.validation import check_memory, positive_int
from ..data.containers import Container
from ..data.items import SequentialItems, loader_options
from ..data.splits import Split
from ..programs.arguments import ProgramInputs
from ..programs.audit import audit_minibatch
from ..programs.base import Program, data_plate
from ..programs.context import check_parameter_store
from ..programs.inputs import (
    check_data,
    materialize,
    normalize_order,
    program_dtype,
    program_labels,
    read_data,
    split_program,
)
from ..programs.modules import as_module
from .adaptation import adapt_program
from .arguments import collect_arguments, describe_shared, validation_arguments
from .batches import BatchLoader, ValidationData, checksum_data
from .cuda_graph import enable_capturable
from .diagnostics import check_parameters
from .history import History
from .initialization import initialize, needs_data_initialization
from .input_scale import explain_invalid_parameters
from .objectives import ELBO
from .optimizers import FusedOptimizer, create_scheduler, optimizer_factory
from .sharding import check_decomposable
from .trackers.base import Tracker
from .trackers.session import TrackingSession, find_trackers, log_folder
from .trainer import Trainer, validation_elbo

__all__ = ["fit", "resolve_device"]

_BATCH_SIZE = 100
#: Size of the random examples of a container from which modules are initialised, as float32.
_INITIALIZATION_BYTES = 2**26


def fit(
    program: Any,
    train: Any,
    *args: Any,
    valid: Any = None,
    objective: PyroELBO | type[PyroELBO] | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.Adam,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    epochs: int = 50,
    batch_size: int = _BATCH_SIZE,
    labelled_every: int | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: TrainingPrecision = "float32",
    compile: bool | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 1,
    resume: bool = False,
    on_epoch: Callable[[History], None] | None = None,
    progress: bool = False,
    log: Sequence[Tracker | str] = (),
    plate: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> History:
    """Train a Pyro program by stochastic variational inference.

    Data in memory stay on the device, where minibatches are gathered by index and, if requested,
    binarised. Memory maps and sparse matrices of more than 256 MiB and the items of data sets are
    read during training instead, ahead of their use where possible, with the same results. On one
    machine, a seed determines the weights bit for bit, whether or not training was interrupted and
    resumed.

    Several processes (see :func:`~pyro_vae.distributed.process_group`) that all call this function
    train data-parallel: each takes a shard of every minibatch, and gradients are summed before
    clipping. A step equals that of one process with the whole minibatch, up to rounding and
    different random numbers. All processes start from the weights of the first, keep identical
    weights, and return the same history (up to ``seconds``). Only the first writes the checkpoint,
    from which any number of processes can resume. Losses that are not a sum over examples raise an
    error: free bits, batch norm, likelihoods with an optimal scale per minibatch, and
    ``MonteCarloEM``.

    Parameters per training example are trained on minibatches too, if the program reads them by
    the index of its plate (``loc[i]`` inside ``with pyro.plate("data", len(x)) as i``), in plates
    with ``subsample``, and in Pyro's autoguides with a density of each example, see
    :func:`~pyro_vae.programs.autoguides.sample_directly`.
    Whatever the declared size of the plate, the loss is a sum over the minibatch.

    Arguments:
        program: an ``nn.Module`` (a ``PyroModule``) with ``model(x)`` and ``guide(x)``, or a pair
            (model, guide) of modules, methods or functions; trained in place and left on the
            device. All parameters of the modules are trained, registered with Pyro or not, except
            frozen ones (``requires_grad=False``), and all that model and guide register with
            ``pyro.module`` and ``pyro.param``. Those of ``pyro.param`` start from their values in
            Pyro's parameter store, if it has any, and are there after training. A program that
            conditions on labels is called with ``(x, labels)``; one with partial labels is called
            with ``(x, labels)`` on labelled minibatches and ``(x)`` on unlabelled ones.
        train: training data, of any type that :func:`~pyro_vae.data.as_split` accepts; a ``Split``
            or a ``Dataset`` if there are labels. All of it is read and checked before training. A
            tensor is used as it is; other data get the dtype of the program. A ``DataLoader``
            gives its data set, its ``batch_size``, ``drop_last`` and ``num_workers``; with
            ``shuffle``, ``seed`` determines the order, else minibatches are consecutive. An
            ``IterableDataset`` is read once per epoch in its own order, and must end.
        *args: further arguments of model and guide, after x and the labels. Tensors and arrays
            of leading size N have one row per example and are gathered with the minibatch, unless
            the program shares them between examples; other values are passed as they are.
        valid: validation data, whose ELBO is computed after every epoch with fixed noise. Further
            arguments with a row per example come from ``Split(x, arguments=…)``.
        objective: a Pyro ``ELBO``, or a class of one with its default arguments;
            :class:`~pyro_vae.objectives.ELBO` by default.
        optimizer: creates the torch optimizer of all parameters: a class of ``torch.optim`` or a
            ``partial`` of one; or an optimizer of ``pyro.optim`` with fixed arguments.
        schedule: ``schedule(optimizer)`` creates a torch learning-rate scheduler, stepped after
            every epoch (``ReduceLROnPlateau`` monitors the validation ELBO).
        epochs: number of passes over the training data.
        batch_size: examples per minibatch, over all processes; the last minibatch of an epoch may
            be smaller. Leave it out for a ``DataLoader``, which has its own.
        labelled_every: number of unlabelled minibatches between two labelled ones, for programs
            with partial labels. An epoch is then a pass over the unlabelled examples, and the
            labelled ones repeat as needed. By default, an epoch contains every example once.
        clip_norm: maximum norm of the gradient, which is summed over the minibatch.
        patience: stop after this many epochs without an improvement of the validation ELBO, and
            restore the weights of the best epoch.
        seed: seed of the data order, the binarisation and the samples; on the command line also
            of the initial weights (in Python, the program is already initialised).
        device: ``cuda``, ``cpu``, or ``auto`` for CUDA if available.
        precision: ``bfloat16`` rounds the products of linear and convolutional layers
            (``F.linear``, ``F.conv2d``, …), forward and backward, by up to 0.4 %, for processors
            and GPUs with instructions for it. Weights, gradients, the optimizer's state, biases,
            other products, log-densities and the validation ELBO remain in float32. ``tf32`` lets
            a GPU round the inputs of all its float32 products. ``float32`` leaves the program's
            own precision as it is.
        compile: compile the training step (``learning.CompiledSVI``) where possible, which takes 4
            to 30 s; ``None`` compiles from the first step if there are at least 2500, and not at
            all otherwise. Compiled and eager steps use the same random numbers and differ by
            rounding only. A run that was too short and is resumed with more ``epochs`` differs from
            an uninterrupted one by this rounding: set ``compile`` to avoid it.
        checkpoint: file to save the training state to.
        checkpoint_every: epochs between checkpoints; the last epoch is always saved. Increase it if
            saving takes longer than an epoch.
        resume: resume from the checkpoint, if it exists.
        on_epoch: callback after every epoch.
        progress: show a progress bar on standard error, in the first process.
        log: trackers that record the training, as objects or by name: ``csv``, ``tensorboard``,
            ``wandb``, ``mlflow`` or ``trackio``, see :mod:`~pyro_vae.learning.trackers`. A
            resumed training continues their records. Recording does not affect training.
        plate: the name of the plate over the data, see :func:`~pyro_vae.log_weights`; by default
            the attribute ``plate`` of the program, if it has one.
        arguments: further arguments by name, also those that have the name of an option of this
            function.
        **kwargs: further arguments of model and guide by name, like ``args``. They replace those
            of ``Split(x, arguments=…)`` of the same name.

    Returns:
        The :class:`History`.

    Raises:
        ValueError: for data that the program cannot score, missing labels, numbers out of range,
            a missing CUDA device, a precision that the device or the dtype of the program does not
            have, a program without parameters to train, a loss that depends on
            parameters of others, values in Pyro's parameter store that would overwrite those of
            the program, arguments that the program does not accept, a program that only runs on
            all examples on smaller minibatches, validation data of a program with parameters per
            training example, or latents whose log p and log q cannot be compared (a point mass,
            different masks); with several processes, if their settings or data differ, or if the
            loss is not a sum over examples.
        CheckpointError: if the checkpoint is damaged, of another format, or has other settings.
        NonFiniteLossError: if the loss becomes NaN or infinite, naming epoch, step and site.
        ConnectionError: if another process has terminated.

    Example:
        >>> vae = pv.VAE(data.event_shape, latent_dim=2)
        >>> history = pv.fit(vae, data.train, valid=data.valid, epochs=2)
        >>> len(history), sorted({"elbo", "valid_elbo"} & set(history.epochs[-1]))
        (2, ['elbo', 'valid_elbo'])
    """
    positive_int("epochs", epochs)
    positive_int("batch_size", batch_size)
    positive_int("checkpoint_every", checkpoint_every)
    check_seed(seed)
    trackers = find_trackers(log)
    if patience is not None:
        positive_int("patience", patience)
        if valid is None:
            raise ValueError(
                "expected validation data with patience, which monitors their ELBO; got none"
            )
    given, train, args = normalize_order(program, train, args)
    program, optimizer = as_module(given), optimizer_factory(optimizer)
    torch_device = resolve_device(device)
    precision = check_training_precision(precision, program_dtype(program), torch_device)
    options = loader_options(train, batch_size, _BATCH_SIZE)
    batch_size = options.batch_size
    train = read_data(program, train, "the training data")
    valid = None if valid is None else read_data(program, valid, "the validation data")
    own = inspect.signature(fit).parameters
    further = collect_arguments(given, train, args, kwargs, arguments, [*own])
    batches = BatchLoader(
        program,
        train,
        batch_size,
        labelled_every,
        shuffle=options.shuffle,
        drop_last=options.drop_last,
    )
    for data in (train, valid):
        if data is not None:
            check_data(program, data, seed)
    # before the move to the device, to avoid a second copy of the data there
    _initialize(program, program, train, seed)
    check_parameter_store(program, *split_program(given))
    with _ignored_warnings():
        adapted = adapt_program(
            program,
            split_program(given),
            batches,
            further,
            plate or data_plate(given),
            torch_device,
        )
    trained, form, stored = adapted
    if stored.params:
        _initialize(trained, program, train, seed)
    shapes = {name: list(p.shape) for name, p in trained.named_parameters()}
    sizes = len(train), None if valid is None else len(valid)
    # the collective calls below rely on equal shapes
    distributed.check_same_across_ranks({"parameters": shapes, "number of examples": sizes})
    if torch_device.type == "cpu":
        # of Adam: the parameters, their gradients and two moments
        size = 4 * sum(p.numel() * p.element_size() for p in trained.parameters())
        check_memory("the parameters and their optimizer", size, "use a smaller model")
    trained.to(torch_device)
    distributed.broadcast_parameters(trained)
    batches.to(torch_device)
    held_out = None
    if valid is not None:
        tensors = validation_arguments(form, valid)
        held_out = ValidationData(program, valid, seed, torch_device, tensors)
    loss: Any = ELBO() if objective is None else objective
    loss = loss() if isinstance(loss, type) else loss
    path = Path(checkpoint) if checkpoint is not None else None

    with stored.scope(), _training_mode(trained):
        check_decomposable(trained, loss, batches)
        _warm_up(trained, loss, batches, seed)
        if held_out is not None:
            # raise its errors before training
            validation_elbo(trained, held_out.head(batch_size), seed)
        reduce = distributed.all_reduce_gradients if distributed.world_size() > 1 else None
        optim = FusedOptimizer(optimizer, clip_norm, reduce)
        optim.add(dict(trained.named_parameters()))
        assert optim.optimizer is not None
        if compile is not False and torch_device.type == "cuda":
            enable_capturable(optim.optimizer)
        scheduler = create_scheduler(schedule, optim, epochs) if schedule else None
        labels = program_labels(program, train)
        more = (*(() if labels is None else (labels,)), *form.tensors)
        data_checksums = [checksum_data(train, *more)]
        if held_out is not None:
            data_checksums.append(held_out.checksum())
        settings = {
            "seed": seed,
            "batch_size": batch_size,
            "clip_norm": clip_norm,
            "patience": patience,
            "data": data_checksums + describe_shared(form.shared),
            "parameters": shapes,
            "objective": [type(loss).__name__, _serializable(vars(loss))],
            "optimizer": [type(optim.optimizer).__name__, _serializable(optim.optimizer.defaults)],
            "schedule": type(scheduler).__name__ if scheduler else None,
            "labelled_every": labelled_every,
            "precision": precision,
        }
        resuming = resume and path is not None and path.exists()
        distributed.check_same_across_ranks(
            {**settings, "epochs": epochs, "checkpoint": resuming, "compile": compile}
        )
        trainer = Trainer(
            trained,
            loss,
            optim,
            scheduler,
            batches,
            held_out,
            seed=seed,
            precision=precision,
            compile=compile,
            patience=patience,
            settings=settings,
        )
        if resuming:
            trainer.resume(cast(Path, path), epochs)
        with TrackingSession(
            trackers,
            given,
            train if valid is None else valid,
            seed=seed,
            name=type(program).__name__,
            config=_describe_training(settings, epochs),
            folder=log_folder(path),
            resume=resuming,
        ) as session:

            def after_epoch(history: History) -> None:
                session.log_epochs(history.epochs)
                if on_epoch is not None:
                    on_epoch(history)

            return trainer.run(epochs, path, checkpoint_every, after_epoch, progress)


def _describe_training(settings: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Return the settings of a training for trackers."""
    names = ("seed", "batch_size", "clip_norm", "patience", "schedule", "labelled_every")
    described = {"epochs": epochs, **{name: settings[name] for name in names}}
    for name in ("objective", "optimizer"):
        kind, options = settings[name]
        described[name] = {"name": kind, **options}
    described["parameters"] = sum(map(math.prod, settings["parameters"].values()))
    return described


def _initialize(module: nn.Module, program: nn.Module, train: Split | Tensor, seed: int) -> None:
    """Initialise a module from the training data of a program, if any part of it needs them."""
    if needs_data_initialization(module):
        with seeded(seed, Stream.INITIALIZATION):
            initialize(module, *_sample_for_initialization(program, train, seed))


def _sample_for_initialization(
    program: nn.Module, train: Split | Tensor, seed: int
) -> tuple[Tensor, int]:
    """Return examples to initialise modules from, and the number of all examples.

    Data in memory are used in full. A container gives random examples, as all of them may not fit.
    """
    if isinstance(train, Split) and isinstance(train.values, Container):
        count = max(1, _INITIALIZATION_BYTES // (4 * max(1, math.prod(train.event_shape))))
        if count < len(train):
            is_sequential = isinstance(train.values, SequentialItems)
            rows = torch.arange(count) if is_sequential else torch.randperm(len(train))[:count]
            return materialize(program, train.at(rows), seed), len(train)
    return materialize(program, train, seed), len(train)


def _warm_up(program: nn.Module, objective: Any, batches: BatchLoader, seed: int) -> None:
    """Run the objective, so that it selects its estimator and finds plate dimensions.

    This consumes random numbers; in the first step, it would make a resumed run differ. A second
    run, in training mode, shows which parameters are trained. Pyro's store has all of them
    afterwards, and no longer changes which of them are frozen.
    """
    pair, examples = cast(Program, program), batches.example_args()
    program.zero_grad()
    programs = pair.model, pair.guide
    for args in examples:
        inputs = ProgramInputs(*programs, args[0], args[1:], {})
        with explain_invalid_parameters(program, args):
            audit_minibatch(inputs)
    with pyro.validation_enabled(False):
        frozen, random = keep_frozen(*programs), seeded(seed, Stream.WARM_UP)
        with torch.no_grad(), eval_mode(*programs), frozen, random:
            for args in examples:
                objective.loss(*programs, *args)
        with keep_frozen(*programs), seeded(seed, Stream.PARAMETERS):
            check_parameters(program, objective, examples, len(batches.data))


def resolve_device(name: str) -> torch.device:
    """Return the torch device for ``cuda``, ``cpu``, or ``auto`` (CUDA if available).

    Each process on a machine gets its own GPU.

    Raises:
        ValueError: if the name is unknown, if CUDA is requested but not available, or if there are
            fewer GPUs than processes on this machine.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"expected device to be auto, cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device; torch found none: use device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return distributed.local_device()


def _serializable(values: dict[str, Any]) -> dict[str, Any]:
    """Return the public entries that a checkpoint can store: numbers, strings and tuples."""
    types = (bool, int, float, str, tuple, type(None))
    serializable = {k: repr(v) if is_dataclass(v) else v for k, v in values.items()}
    return {k: v for k, v in serializable.items() if isinstance(v, types) and not k.startswith("_")}


@contextmanager
def _training_mode(program: nn.Module) -> Iterator[None]:
    """Enable training mode, and ignore warnings as in :func:`_ignored_warnings`."""
    before = program.training
    program.train()
    with _ignored_warnings():
        try:
            yield
        finally:
            program.train(before)


@contextmanager
def _ignored_warnings() -> Iterator[None]:
    """Ignore Pyro's warnings of NaN losses, which are errors here, and of frozen parameters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered NaN")
        warnings.filterwarnings("ignore", message=".* because requires_grad=False")
        yield
