"""Diagnose untrained parameters, and NaN and infinite losses, gradients and weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ..core import distributed
from ..core.evaluation_mode import before_modules, preserve_buffers
from ..programs.base import Program, sample_sites, trace_program
from ..programs.modules import ProgramModule
from .input_scale import advise_scaling
from .objectives.base import Objective, StepInfo, find_leaf_tensors

__all__ = [
    "NonFiniteLossError",
    "check_epoch",
    "check_owned",
    "check_parameters",
    "find_non_finite_parameter",
    "make_checked_loss_and_grads",
    "register",
]


_log = logging.getLogger("pyro_vae")


def check_parameters(
    program: nn.Module, objective: Any, examples: Iterable[tuple[Tensor, ...]], num_data: int
) -> None:
    """Check which parameters the loss depends on, from one run for each kind of minibatch.

    Parameters of the program that it never depends on are logged, and so is advice for data of a
    scale with which training may fail. Buffers and gradients are left unchanged.

    Arguments:
        program: the program, in the mode in which it is trained.
        objective: the objective, as for :func:`~pyro_vae.fit`.
        examples: arguments of the program, one tuple for each kind of minibatch.
        num_data: number of training examples.

    Raises:
        ValueError: if there are no parameters to train, or if the loss depends on one that the
            program does not own.
    """
    owned: dict[Tensor, str] = {p: name for name, p in program.named_parameters()}
    unused = {p: name for p, name in owned.items() if p.requires_grad}
    if not unused:
        got = f"{type(program).__name__} with {'none' if not owned else 'only frozen ones'}"
        remedy = "assign networks and nn.Parameters to it, or set requires_grad"
        if isinstance(program, ProgramModule):
            got = "a model and a guide that register none, or only frozen ones"
            remedy = "register networks by pyro.module and parameters by pyro.param"
        raise ValueError(f"expected parameters to train; got {got}: {remedy}")
    if isinstance(objective, Objective):
        objective.set_step(StepInfo(num_data=num_data))
    for args in examples:
        with preserve_buffers([program]), _ParameterRecorder() as recorder:
            leaves = _find_trained(program, objective, args, recorder)
        check_owned(owned, {leaf: recorder.names.get(leaf, "a tensor") for leaf in leaves})
        for leaf in leaves:
            unused.pop(leaf, None)
    if unused and distributed.is_main_process():
        names = ", ".join(map(repr, list(unused.values())[:5]))
        more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
        _log.warning("not trained, because the loss does not depend on them: %s%s", names, more)
    advice = next(filter(None, (advise_scaling(program, args) for args in examples)), None)
    if advice and distributed.is_main_process():
        _log.warning("training may fail or stall: %s", advice)


def check_owned(owned: Iterable[Tensor], parameters: Mapping[Tensor, str]) -> None:
    """Raise if the program does not own all parameters that are trained, given with names.

    Raises:
        ValueError: naming the others.
    """
    owned = set(owned)
    foreign = [(p, name) for p, name in parameters.items() if p not in owned]
    if foreign:
        named = ", ".join(f"{name} of shape {tuple(p.shape)}" for p, name in foreign[:3])
        named += f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(
            f"expected a loss that depends on parameters of the program only; got {named}, which "
            f"would not be saved with it: assign the network, nn.Parameter or PyroParam to the "
            f"program, register it in every run (pyro.module, pyro.param), or freeze it with "
            f"requires_grad_(False)"
        )


def _find_trained(
    program: nn.Module, objective: Any, args: tuple[Tensor, ...], recorder: _ParameterRecorder
) -> list[Tensor]:
    """Return the parameters that the gradient of one run reaches."""
    pair = cast(Program, program)
    if isinstance(objective, Objective):
        _, surrogate = objective.terms(pair.model, pair.guide, *args)
        return find_leaf_tensors([surrogate])
    # Pyro's objectives do not return a surrogate
    objective.loss_and_grads(pair.model, register(pair.guide, program), *args)
    seen = dict.fromkeys([*program.parameters(), *recorder.names])
    trained = [parameter for parameter in seen if parameter.grad is not None]
    for parameter in trained:
        parameter.grad = None
    return trained


def register(guide: Callable[..., Any], program: nn.Module) -> Callable[..., Any]:
    """Return a guide that registers a parameter of the program with Pyro.

    Without any, Pyro's objectives do not compute gradients.
    """
    parameter = next(p for p in program.parameters() if p.requires_grad)

    def registered(*args: Any, **kwargs: Any) -> Any:
        pyro.param("_trained", parameter)
        return guide(*args, **kwargs)

    return registered


class _ParameterRecorder(Messenger):
    """Collect the trainable parameters of everything that a program calls.

    Attributes:
        names: the parameters with their names for error messages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[Tensor, str] = {}

    def __enter__(self) -> _ParameterRecorder:
        self._watch = before_modules(self._record_module)
        self._watch.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)
        super().__exit__(*error)

    def _record_module(self, module: nn.Module, _: Any) -> None:
        for name, parameter in module.named_parameters(recurse=False):
            self._record(parameter, f"{name!r} of {type(module).__name__}")

    def _pyro_post_param(self, msg: Any) -> None:
        unconstrained = getattr(msg["value"], "unconstrained", None)
        if unconstrained is not None:
            self._record(unconstrained(), repr(msg["name"].replace("$$$", ".")))

    def _record(self, parameter: Tensor, name: str) -> None:
        if parameter.requires_grad:
            self.names.setdefault(parameter, name)


class NonFiniteLossError(RuntimeError):
    """The loss, its gradient or a weight became NaN or infinite.

    Non-finite losses and gradients are detected before the weights are updated.

    Attributes:
        what: the quantity that is not finite.
        site: the first sample site whose log-probability is not finite, or the first parameter
            that is not finite or has a non-finite gradient.
    """

    def __init__(
        self, what: str, site: str, cause: str, where: str = "", remedy: str | None = None
    ) -> None:
        super().__init__(what, site, cause, where, remedy)
        self.what, self.site, self.cause, self.where = what, site, cause, where
        self.remedy = remedy or _REMEDY

    def __str__(self) -> str:
        return f"{self.what}{self.where}: {self.cause}; {self.remedy}"


_REMEDY = (
    "try a lower learning rate, gradient clipping (clip_norm), or a scale bounded away from zero"
)


def make_checked_loss_and_grads(objective: Any, module: nn.Module) -> Callable[..., float]:
    """Wrap ``objective.loss_and_grads`` to raise if the loss or a gradient is not finite."""

    def loss_and_grads(model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        state = torch.get_rng_state()
        loss = objective.loss_and_grads(model, guide, *args, **kwargs)
        try:
            if not math.isfinite(loss):
                torch.set_rng_state(state)  # repeat the same samples, to check each site
                cause = _diagnose(model, guide, args, kwargs)
                raise NonFiniteLossError(f"the loss became {loss}", *cause)
            _check_gradients(module, args)
        except NonFiniteLossError as error:
            if error.remedy == _REMEDY:
                error.remedy = advise_scaling(module, args) or _REMEDY
            raise
        return loss

    return loss_and_grads


def check_epoch(module: nn.Module, epoch: int, valid_elbo: float) -> None:
    """Raise a ``NonFiniteLossError`` if a parameter or the validation ELBO is not finite."""
    where = f" at the end of epoch {epoch}"
    name = find_non_finite_parameter(module)
    if name is not None:
        cause = f"parameter '{name}' is not finite after the last update"
        raise NonFiniteLossError("the weights overflowed", name, cause, where)
    if math.isnan(valid_elbo):
        cause = "the log weights of a validation example are NaN"
        raise NonFiniteLossError("the validation ELBO became NaN", "", cause, where)


def find_non_finite_parameter(module: nn.Module) -> str | None:
    """Return the name of the first parameter that is not finite, e.g. after too large a step."""
    return next((n for n, p in module.named_parameters() if not p.isfinite().all()), None)


def _check_gradients(module: nn.Module, args: tuple) -> None:
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    # check the total norm first: one device synchronisation instead of one per gradient
    if not get_total_norm(list(gradients.values())).isfinite():
        largest = {name: float(g.abs().max()) for name, g in gradients.items()}
        bad = [name for name, size in largest.items() if not math.isfinite(size)]
        if bad:
            cause = f"that of parameter '{bad[0]}' is NaN or infinite, but the loss is finite"
            remedy = None
            # programs of this package leave unobserved values out, so NaN is not the cause
            handles_nan = any(getattr(m, "expects_missing", False) for m in module.modules())
            has_nan = any(isinstance(arg, Tensor) and arg.isnan().any() for arg in args)
            if has_nan and not handles_nan:
                cause += ", and the data contain NaN, whose gradient is NaN even where it is masked"
                remedy = "replace NaN by a value in the support (x.nan_to_num()), and keep the mask"
            raise NonFiniteLossError("the gradient is not finite", bad[0], cause, remedy=remedy)
        name = max(largest, key=lambda name: largest[name])
        cause = f"that of parameter '{name}' is up to {largest[name]:.1e}, whose square overflows"
        raise NonFiniteLossError("the gradient has no finite norm", name, cause)


@torch.no_grad()
def _diagnose(model: Any, guide: Any, args: tuple, kwargs: dict) -> tuple[str, str]:
    with poutine.block(), pyro.validation_enabled(False):
        guide_sites, model_sites = trace_program(model, guide, args, kwargs)
    for name, site in (*guide_sites.items(), *model_sites.items()):
        if site["type"] == "param" and not site["value"].isfinite().all():
            return name, f"parameter '{name}' is not finite after the previous update"
    for program, sites in (("guide", guide_sites), ("model", model_sites)):
        for name, site in sample_sites(sites).items():
            log_prob = site["fn"].log_prob(site["value"])
            bad = int((~log_prob.isfinite()).sum())
            if bad:
                family = type(getattr(site["fn"], "base_dist", site["fn"])).__name__
                cause = (
                    f"the log-probability of site '{name}' ({family}) of the {program} is not "
                    f"finite for {bad} of {log_prob.numel()} values"
                )
                return name, cause
    return "", "the log-probability of every site is finite, but their sum or a KL overflowed"
