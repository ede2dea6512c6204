"""What every objective is."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape
from torch import Tensor

from ...programs.base import PLATE, sample_sites, trace_program
from ..schedules import Schedule

__all__ = ["Objective", "PerDatum", "StepInfo", "leaves", "log_weight_prior", "plate_nesting"]

T = TypeVar("T")


@dataclass(frozen=True)
class StepInfo:
    """Where learning is, before a step.

    Attributes:
        epoch: passes over the data so far, with their fraction.
        num_data: the number of training data, if it is known.
        index: which of them are in the minibatch, ``(batch,)``, if it is known.
        update: the number of updates already made with this minibatch.
    """

    epoch: float = 0.0
    num_data: int | None = None
    index: Tensor | None = None
    update: int = 0


class Objective(PyroELBO):
    """The base of all objectives: a Pyro ``ELBO``, so ``SVI(…, loss=objective)`` takes it.

    A new objective defines :meth:`loss` and :meth:`differentiable_loss`. What they return is
    the bound itself, also where the gradient is that of something else.
    """

    #: How many updates :func:`~pyro_vae.fit` makes with each minibatch.
    updates: int = 1

    #: Why it is not the sum of what it is of parts of a minibatch, if it is not, as a clause:
    #: several processes, which take parts, then refuse it.
    not_decomposable_reason: str | None = None

    #: Why its gradient is no single graph of tensor operations, if it is none, as a clause: such
    #: an objective is not compiled.
    not_traceable_reason: str | None = None

    #: What the next step is of, for what changes with it.
    _moment: StepInfo = StepInfo()

    #: What schedules are at this step, where somebody has computed it.
    _values: Mapping[str, Any] = {}

    #: The program that was looked at, and what was seen, by the kinds of its arguments.
    _seen: tuple[Any, Any, dict[tuple, Any]] | None = None

    def at(self, moment: StepInfo) -> None:
        """Told by :func:`~pyro_vae.fit` before each step what it is of."""
        self._moment = moment

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted :func:`~pyro_vae.fit` needs to go on: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""

    @abstractmethod
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the objective, summed over the data, in nats."""

    @abstractmethod
    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """:meth:`loss` as a tensor whose gradient is the estimator's."""

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """:meth:`loss`, after adding its gradient to every parameter's ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """:meth:`loss`, and a tensor whose gradient is the estimator's; nothing is read back.

        An objective that reads its loss as a number defines this, too, so that it can be traced.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        return loss.detach(), loss

    def scheduled(self) -> dict[str, float]:
        """What every argument that is a schedule is at this step."""
        named = {n: v for n, v in vars(self).items() if isinstance(v, Schedule)}
        return {name: self._scheduled(value) for name, value in named.items()}

    @contextmanager
    def given(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Takes ``values``, tensors perhaps, for what :meth:`scheduled` tells."""
        self._values = values
        try:
            yield
        finally:
            self._values = {}

    def _once(self, look: Callable[[], T], model: Any, guide: Any, args: tuple, kwargs: dict) -> T:
        """What ``look()`` gave when this program was first called with arguments of these kinds.

        Called with others, a program may have other sites: with labels, and without.
        """
        # compared by ==, because vae.model is a new bound method at every access
        if self._seen is None or self._seen[:2] != (model, guide):
            self._seen = (model, guide, {})
        found = self._seen[2]
        kinds = (*map(_kind, args), *((name, _kind(kwargs[name])) for name in sorted(kwargs)))
        if kinds not in found:
            found[kinds] = look()
        return found[kinds]

    def _scheduled(self, value: float | Schedule) -> float:
        """A number, or what it is at this step."""
        if not isinstance(value, Schedule):
            return value
        for name, given in self._values.items():
            if getattr(self, name) is value:
                return given
        if self._moment is Objective._moment:
            raise ValueError(
                f"expected to be told the epoch, with which {value} changes; got none: call "
                f"objective.at(StepInfo(epoch=…)) before each step, as fit does"
            )
        return value(self._moment.epoch)

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError(f"{type(self).__name__} runs the programs by itself")


def _kind(value: Any) -> Any:
    # a flag or a word may decide which sites there are; a size does not
    if isinstance(value, bool | str):
        return value
    return Tensor if isinstance(value, Tensor) else type(value)


@torch.no_grad()
def plate_nesting(model: Any, guide: Any, args: tuple, kwargs: dict) -> int:
    """The depth of a program's plates, by one run of it.

    Pyro finds its ``max_plate_nesting`` likewise where it is not given one, but prints it.
    """
    with poutine.block():
        both = trace_program(model, guide, args, kwargs)
    sites = [site for found in both for site in sample_sites(found).values()]
    if is_validation_enabled():
        # as Pyro does now, because its checks are weaker once it knows the depth
        for site in sites:
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            check_site_shape(cast("Any", {**site, "log_prob": log_prob}), cast("int", math.inf))
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


class PerDatum(Messenger):
    """Refuses sites outside of the plate, of which there may be some in training mode alone.

    Raises:
        ValueError: at such a site.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("_deterministic") or site_is_subsample(msg):
            return
        if not any(frame.name == PLATE for frame in msg["cond_indep_stack"]):
            raise ValueError(
                f'expected every site in the plate "{PLATE}", so that there are weights per datum; '
                f"got {msg['name']!r} outside of it: use ELBO with gradient 'standard', or sample "
                f'it inside `with pyro.plate("{PLATE}", len(x)):`'
            )


def leaves(results: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that tensors were computed from, by autograd's own account.

    Not by Pyro's parameter store, which may remember another module's of the same name.
    """
    results = list(results)
    found = {id(t): t for t in results if t.requires_grad and t.is_leaf}
    waiting: list[Any] = [t.grad_fn for t in results if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        after = {function for function, _ in node.next_functions if function is not None} - seen
        seen |= after
        waiting += after
    return list(found.values())


def log_weight_prior(modelled: Iterable[Tensor], guided: Iterable[Tensor]) -> Tensor:
    """log N(θ; 0, I), but for a constant, of the parameters θ that the model alone uses.

    Constrained ones count as the unconstrained numbers that are learned.

    Arguments:
        modelled: what the model computed of a run, its log-densities.
        guided: what the guide did, its draws and their log-densities.

    Raises:
        ValueError: if the guide uses all of the model's parameters.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 5 and appendix F.
        https://arxiv.org/abs/1312.6114
    """
    shared = {id(leaf) for leaf in leaves(guided)}
    own = [leaf for leaf in leaves(modelled) if id(leaf) not in shared]
    if not own:
        raise ValueError(
            "expected parameters that the model uses and the guide does not; got none: leave "
            "map_weights out"
        )
    return -0.5 * torch.stack([leaf.square().sum() for leaf in own]).sum()
