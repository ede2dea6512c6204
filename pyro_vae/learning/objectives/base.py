"""Base class of the training objectives."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from pyro import poutine
from pyro.infer import ELBO as PyroELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import check_site_shape, warn_if_nan
from torch import Tensor

from ...core.evaluation_mode import eval_mode, owning_modules, preserve_buffers
from ...core.random import Stream, seeded
from ...programs.arguments import ProgramInputs
from ...programs.audit import audit_inputs
from ...programs.base import PARTICLES, PLATE, Site, sample_sites, trace_program
from ...programs.checks import check_guide_samples
from ...programs.context import use_own_parameters
from ...programs.enumeration.marks import find_enumerated, is_marked
from ...programs.importance_weights import find_layout
from ...programs.particles import Layout
from ...programs.plates import normalize_plate
from ..schedules import Schedule

__all__ = [
    "DataPlateChecker",
    "Objective",
    "StepInfo",
    "find_leaf_tensors",
    "find_max_plate_nesting",
    "log_parameter_prior",
    "reported_scale",
    "restrict_gradient",
]

T = TypeVar("T")


@dataclass(frozen=True)
class StepInfo:
    """Training progress before a step.

    Attributes:
        epoch: epochs completed so far, including the fraction of the current one.
        num_data: size of the training set, if known.
        index: training-set indices of the minibatch, ``(batch,)``, if known.
        update: number of updates already made with this minibatch.
    """

    epoch: float = 0.0
    num_data: int | None = None
    index: Tensor | None = None
    update: int = 0


class Objective(PyroELBO):
    """Base class of all objectives: a Pyro ``ELBO``, usable as ``SVI(…, loss=objective)``.

    Subclasses define :meth:`terms`. What is reported is always the bound itself, even if the
    gradient is that of another function: a ``poutine.scale`` in the data plate weighs the gradient
    of its site, in every objective, and does not change the bound. Observed sites of the guide
    (``pyro.factor``) are auxiliary losses: their log-density is added to the loss in the gradient,
    and is not part of the bound.
    """

    #: Updates that :func:`~pyro_vae.fit` makes with each minibatch.
    updates: int = 1

    #: Reason why the objective is not a sum over examples, as a clause; ``None`` if it is one.
    #: Training on several processes requires a sum.
    not_decomposable_reason: str | None = None

    #: Reason why the gradient cannot be traced as one graph of tensor operations, as a clause;
    #: ``None`` if it can. Untraceable objectives are not compiled.
    not_traceable_reason: str | None = None

    #: Progress at the next step, on which schedules and chains depend.
    _step_info: StepInfo = StepInfo()

    #: Values that replace the schedules, by argument name; see :meth:`override_schedules`.
    _schedule_overrides: Mapping[str, Any] = {}

    #: The model and guide last seen, and cached results by argument signature.
    _cache: tuple[Any, Any, dict[tuple, Any]] | None = None

    #: The model and guide last given, and both with a plate "data"; see :meth:`_normalize`.
    _normal: tuple[Any, Any, Any, Any] | None = None

    def set_step(self, info: StepInfo) -> None:
        """Set the training progress, as :func:`~pyro_vae.fit` does before every step."""
        self._step_info = info

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume :func:`~pyro_vae.fit`: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`."""

    @abstractmethod
    def terms(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return minus the bound, and a surrogate whose gradient is the gradient estimator.

        Both are scalars on the device, summed over the minibatch, in nats; the first is detached.
        There is no host synchronisation, so a compiled step can trace this method. Without
        gradients (``torch.no_grad``) only the first is used, and schedules are not evaluated.
        """

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return minus the bound, summed over the minibatch, in nats."""
        model, guide = self._normalize(model, guide, args, kwargs)
        with torch.no_grad():
            return self.terms(model, guide, *args, **kwargs)[0].item()

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return :meth:`loss` as a tensor whose gradient is the gradient estimator."""
        model, guide = self._normalize(model, guide, args, kwargs)
        loss, surrogate = self.terms(model, guide, *args, **kwargs)
        return surrogate - surrogate.detach() + loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return :meth:`loss` and accumulate the gradient in each parameter's ``grad``."""
        model, guide = self._normalize(model, guide, args, kwargs)
        loss, surrogate = self.terms(model, guide, *args, **kwargs)
        if surrogate.requires_grad:
            surrogate.backward()
        value = loss.item()
        warn_if_nan(cast("Any", value), "loss")
        return value

    def schedule_values(self) -> dict[str, float]:
        """Return the current value of every argument that is a schedule."""
        schedules = {n: v for n, v in vars(self).items() if isinstance(v, Schedule)}
        return {name: self._current_value(value) for name, value in schedules.items()}

    @contextmanager
    def override_schedules(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Use ``values`` (possibly tensors) in place of :meth:`schedule_values`."""
        self._schedule_overrides = values
        try:
            yield
        finally:
            self._schedule_overrides = {}

    def _normalize(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        """Return model and guide with a plate "data", whatever its name is (cached).

        A program without one plate over the data is returned unchanged: not every objective needs
        weights per datum.
        """
        # compared by ==, because vae.model is a new bound method at every access
        if self._normal is not None and self._normal[:2] == (model, guide):
            return self._normal[2:]
        normal: tuple[Any, Any] = model, guide
        if args and isinstance(args[0], Tensor) and args[0].ndim:
            inputs = ProgramInputs(model, guide, args[0], args[1:], kwargs)
            with suppress(ValueError), poutine.block():
                form = normalize_plate(inputs, allow_shared=True)
                normal = form.model, form.guide
        self._normal = (model, guide, *normal)
        return normal

    def layout(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Layout:
        """Return the particle layout of a program (cached).

        Raises:
            ValueError: as for :func:`~pyro_vae.programs.audit.audit_inputs`, or if the program
                needs other arguments when its examples are repeated for each particle.
        """

        def compute() -> Layout:
            inputs = ProgramInputs(model, guide, args[0], args[1:], kwargs)
            normal = audit_inputs(inputs)
            with poutine.block(), eval_mode(model, guide):
                layout = find_layout(model, guide, *args, **kwargs)
            if layout.tiled and normal.guide is not inputs.guide:
                raise ValueError(
                    "expected a program that supports a particle dimension to the left of its "
                    "plates, or that computes each example from its own data; got one that reads "
                    "tensors shared by all examples, or by their index"
                )
            return layout

        return self._cached(compute, model, guide, args, kwargs)

    def enumerated_sites(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> list[str]:
        """Return the sites of the model that are summed out (cached).

        Raises:
            ValueError: as for :func:`~pyro_vae.programs.enumeration.marks.find_enumerated`, or if
                the guide lacks another latent.
        """

        def compute() -> list[str]:
            guide_sites, model_sites = self.checked_sites(model, guide, args, kwargs)
            return find_enumerated(model_sites, guide_sites)

        return self._cached(compute, model, guide, args, kwargs)

    def checked_sites(
        self, model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> tuple[dict[str, Site], dict[str, Site]]:
        """Return the sample sites of guide and model, from a run without side effects.

        Raises:
            ValueError: if the guide lacks a latent that is not enumerated.
        """
        unchanged = preserve_buffers(owning_modules(model, guide))
        own, random = use_own_parameters(model, guide), seeded(0, Stream.ENUMERATED_SITES)
        with torch.no_grad(), poutine.block(), own, unchanged, random:
            traces = trace_program(model, guide, args, kwargs, sum_out=False)
        guide_sites, model_sites = map(sample_sites, traces)
        others = {name: site for name, site in model_sites.items() if not is_marked(site)}
        check_guide_samples(others, guide_sites)
        return guide_sites, model_sites

    def _cached(
        self, compute: Callable[[], T], model: Any, guide: Any, args: tuple, kwargs: dict
    ) -> T:
        """Return ``compute()``, cached for this program and signature of its arguments.

        Results of different functions are cached separately.

        The sites of a program may depend on the signature, e.g. with and without labels.
        """
        # compared by ==, because vae.model is a new bound method at every access
        if self._cache is None or self._cache[:2] != (model, guide):
            self._cache = (model, guide, {})
        results = self._cache[2]
        key = (
            compute.__qualname__,
            *map(_signature, args),
            *((name, _signature(kwargs[name])) for name in sorted(kwargs)),
        )
        if key not in results:
            results[key] = compute()
        return results[key]

    def _current_value(self, value: float | Schedule) -> float:
        """Evaluate a number or schedule at the current step."""
        if not isinstance(value, Schedule):
            return value
        for name, override in self._schedule_overrides.items():
            if getattr(self, name) is value:
                return override
        if self._step_info is Objective._step_info:
            raise ValueError(
                f"expected the current epoch, to evaluate {value}; got none: call "
                f"objective.set_step(StepInfo(epoch=…)) before each step, as fit does"
            )
        return value(self._step_info.epoch)

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not use Pyro's traces")


def _signature(value: Any) -> Any:
    # flags and strings can change the sites of a program; sizes do not
    if isinstance(value, bool | str):
        return value
    return Tensor if isinstance(value, Tensor) else type(value)


@torch.no_grad()
def find_max_plate_nesting(model: Any, guide: Any, args: tuple, kwargs: dict) -> int:
    """Return the depth of a program's plates, found by running it once.

    Pyro guesses ``max_plate_nesting`` the same way if it is not given, but prints it.
    """
    with poutine.block():
        traces = trace_program(model, guide, args, kwargs, sum_out=False)
    sites = [site for trace in traces for site in sample_sites(trace).values()]
    if is_validation_enabled():
        # check shapes here, because Pyro's checks are weaker once the depth is known
        for site in sites:
            log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            check_site_shape(cast("Any", {**site, "log_prob": log_prob}), cast("int", math.inf))
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


class DataPlateChecker(Messenger):
    """Raise a ``ValueError`` at a sample site outside the data plate, in training mode too."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["infer"].get("_deterministic") or site_is_subsample(msg):
            return
        names = [f.name for f in msg["cond_indep_stack"] if f.name != PARTICLES]
        if PLATE in names:
            return
        where = f"only in {', '.join(map(repr, names))}" if names else "outside of it"
        raise ValueError(
            f"expected every site in the plate over the data, because the weights are per datum; "
            f"got {msg['name']!r} {where}: use ELBO with gradient 'standard', or sample the site "
            f'inside `with pyro.plate("{PLATE}", len(x)):`, whose name decides if several plates '
            f"have the size of the data"
        )


def reported_scale(site: Site) -> Any:
    """Return the scale of a site in the bound that an objective reports.

    A ``poutine.scale`` in the data plate weighs the gradient only. Subsampled plates keep their
    scale, and a latent shared by all examples its own: the fraction of the training set in the
    minibatch.
    """
    scale, frames = site["scale"], site["cond_indep_stack"]
    if not any(frame.name == PLATE for frame in frames):
        return scale
    sizes = [(f.full_size, f.size) for f in frames if f.full_size not in (None, f.size)]
    reported = math.prod(full / size for full, size in sizes)
    return scale if not isinstance(scale, Tensor) and scale == reported else reported


def find_leaf_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the leaf tensors (parameters) that the given tensors depend on, from autograd.

    Pyro's parameter store is no substitute: it may hold another module's parameters of the same
    name.
    """
    tensors = list(tensors)
    leaves = {id(t): t for t in tensors if t.requires_grad and t.is_leaf}
    stack: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    visited = set(stack)
    while stack:
        node = stack.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves[id(leaf)] = leaf
        new = {function for function, _ in node.next_functions if function is not None} - visited
        visited |= new
        stack += new
    return list(leaves.values())


def restrict_gradient(value: Tensor, leaves: Iterable[Tensor]) -> Tensor:
    """Return zero, with the gradient of ``value`` with respect to the given leaf tensors only."""
    leaves = list(leaves)
    if not leaves:
        return torch.zeros_like(value)
    gradients = torch.autograd.grad(value, leaves, retain_graph=True)
    pairs = zip(leaves, gradients, strict=True)
    return torch.stack([((leaf - leaf.detach()) * g).sum() for leaf, g in pairs]).sum()


def log_parameter_prior(model_tensors: Iterable[Tensor], guide_tensors: Iterable[Tensor]) -> Tensor:
    """log N(θ; 0, I), up to a constant, of the parameters θ used by the model only.

    Constrained parameters enter as their unconstrained values.

    Arguments:
        model_tensors: log-densities computed by the model.
        guide_tensors: samples and log-densities computed by the guide.

    Raises:
        ValueError: if the guide uses all of the model's parameters.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 5 and appendix F.
        https://arxiv.org/abs/1312.6114
    """
    guide_leaves = {id(leaf) for leaf in find_leaf_tensors(guide_tensors)}
    parameters = [leaf for leaf in find_leaf_tensors(model_tensors) if id(leaf) not in guide_leaves]
    if not parameters:
        raise ValueError(
            "expected parameters that only the model uses, for map_weights; got none: leave "
            "map_weights out"
        )
    return -0.5 * torch.stack([leaf.square().sum() for leaf in parameters]).sum()
