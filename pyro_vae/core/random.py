"""Reproducible random streams that leave the caller's generators unchanged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch
from pyro.util import get_rng_state, set_rng_state

from . import distributed
from .validation import non_negative_int

__all__ = ["Stream", "check_seed", "seeded"]


class Stream(IntEnum):
    """The random streams derived from a seed: one member for each use of random numbers.

    ``seeded(seed, Stream.X, *more)`` seeds a stream. Every member has one use, with a fixed number
    of further integers (a block, an epoch), so two uses never share their random numbers. Values
    are never reused or renumbered: they determine recorded results. Data sets draw their noise from
    ``(seed, number of examples)``; the large values cannot be the size of a data set.
    """

    #: Epochs of training; epoch 0 draws the initial weights.
    TRAINING = 0
    #: The ELBO of the validation data.
    VALIDATION = 1
    #: The run before training that selects the estimator.
    WARM_UP = 2
    #: Initialisation from the training data.
    INITIALIZATION = 3

    #: Samples of q with the same number for every example.
    IMPORTANCE = 4_000_000_001
    #: Pilot runs that choose the number of samples per example.
    PILOT = 4_000_000_002
    #: Samples of q with a number chosen per example.
    ADAPTIVE = 4_000_000_003
    #: Samples of the prior in a defensive mixture.
    DEFENSIVE = 4_000_000_004
    #: The seed of samples of q that are weighted in both precisions of the network layers.
    PRECISION = 4_000_000_005
    #: A first run on a subset of the examples, to find out whether the program supports it.
    SUBSET = 4_000_000_006
    #: Chains of annealed importance sampling.
    AIS = 4_000_000_007
    #: Chains of bidirectional Monte Carlo.
    BDMC = 4_000_000_008
    #: Data simulated from the model.
    SIMULATION = 4_000_000_009
    #: Chains of the rate–distortion curve.
    RATE_DISTORTION = 4_000_000_010
    #: Chains of reciprocal importance sampling.
    RECIPROCAL = 4_000_000_011
    #: The first run of the inference gaps, which resolves the variational families.
    GAPS_SETUP = 4_000_000_012
    #: Refits of the evaluated and of the training examples.
    GAPS = 4_000_000_013
    GAPS_TRAIN = 4_000_000_014
    #: Posterior means of the active units.
    ACTIVE_UNITS = 4_000_000_015
    #: The first run of the KL divergences, and their samples.
    DIVERGENCES_SETUP = 4_000_000_016
    DIVERGENCES = 4_000_000_017
    #: ELBO surgery: the subset of examples, the first run, the samples.
    SURGERY_SUBSET = 4_000_000_018
    SURGERY_SETUP = 4_000_000_019
    SURGERY = 4_000_000_020
    #: Initial states of the chains of HMC.
    HMC = 4_000_000_021
    #: Log weights in the report.
    REPORT = 4_000_000_022
    #: Queries.
    IMPUTE = 4_000_000_023
    SCORE_MISSING = 4_000_000_024
    SAMPLE = 4_000_000_025
    RECONSTRUCT = 4_000_000_026
    INTERPOLATE = 4_000_000_027
    TRAVERSE = 4_000_000_028
    ENCODE = 4_000_000_029
    #: Runs that find the sites of a program.
    AUDIT = 4_000_000_030
    #: Values of discrete latents, and the continuous latents given each value.
    DISCRETE_SETUP = 4_000_000_031
    DISCRETE = 4_000_000_032
    #: The audit of a program on a minibatch, before training.
    AUDIT_MINIBATCH = 4_000_000_033
    #: The run before training that finds the parameters that are trained.
    PARAMETERS = 4_000_000_034
    #: Laplace proposals and their samples.
    LAPLACE = 4_000_000_035
    #: Curvatures that predict the tail of the weights of the guide's samples.
    TAIL_INDEX = 4_000_000_036
    #: The subset of the examples that is weighted in both precisions.
    PRECISION_SUBSET = 4_000_000_037
    #: Samples of posterior approximations, and replicates of the data, for calibration.
    CALIBRATION = 4_000_000_040
    CALIBRATION_PREDICTIVE = 4_000_000_041
    #: Laplace proposals for calibration.
    CALIBRATION_LAPLACE = 4_000_000_042
    #: The audit of a program before it is evaluated in blocks of examples.
    AUDIT_BLOCKS = 4_000_000_044
    #: The run that finds the shapes of a model of another library, and its optimal noise.
    GIVEN_MODEL = 4_000_000_050
    #: The run before training that finds the sites that are summed out.
    ENUMERATED_SITES = 4_000_000_060
    #: The run before training that finds the parameters of functions.
    REGISTRATIONS = 4_000_000_061
    #: Samples of the prior in an explorer page.
    EXPLORE = 4_000_000_070


def check_seed(seed: int) -> int:
    """Return ``seed``; raise a ``ValueError`` unless it is an integer in [0, 2⁶³)."""
    return non_negative_int("seed", seed)


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seed torch (all devices), NumPy and ``random`` within a context.

    The numbers in ``entropy`` are hashed together, without regard to zeros at the end:
    ``seeded(seed, Stream.TRAINING, epoch)`` gives each epoch its own numbers, so a resumed run only
    needs to know its epoch. The previous state of all generators is restored on exit.
    """
    # NumPy takes 32 bits
    seed = int(np.random.SeedSequence([*map(check_seed, entropy)]).generate_state(1)[0])
    state = get_rng_state()
    with torch.random.fork_rng(_devices()):
        _set_seed(seed)
        try:
            yield
        finally:
            set_rng_state(state)


def _set_seed(seed: int) -> None:
    """Do what ``pyro.set_rng_seed`` does, without its cost on a machine without a GPU.

    ``torch.manual_seed`` records the stack for each kind of device that is not in use yet, which
    takes longer than all else that a seeded block does for itself.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def _devices() -> list[int]:
    """GPUs whose generators are in use: in a distributed run, only that of this process."""
    if distributed.world_size() > 1 and torch.cuda.is_available():
        return [torch.cuda.current_device()]
    return list(range(torch.cuda.device_count()))
