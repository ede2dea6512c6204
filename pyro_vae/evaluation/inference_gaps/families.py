"""Variational families with free parameters per example in place of an encoder's output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal, Normal, TransformedDistribution

from ...core.components import NetworkFactory, Shape
from ...posteriors import (
    DiagonalNormal,
    FullCovarianceNormal,
    LowRankNormal,
    Posterior,
    SemiAmortized,
)
from ...posteriors.overridable import OverridableNetwork
from ...programs.arguments import ProgramInputs
from ...programs.base import Site, is_latent, trace_sites
from ...programs.kl import unwrap_independent

__all__ = [
    "FamilyFactory",
    "VariationalFamily",
    "choose_family",
    "extract_family",
    "get_family_name",
    "is_noise",
    "make_family",
]

#: ``family(event_shape, latent_dim, network)``.
FamilyFactory = Callable[[Shape, int, NetworkFactory], Posterior]

#: Standard deviation of a new family's initial parameters. A flow starts near the identity but
#: not at it, because some of its gradients vanish there.
_INIT_SCALE = 0.01


@dataclass(frozen=True)
class VariationalFamily:
    """q(u) of N examples as a function of its parameters, the output of an encoder network.

    Attributes:
        name: the name of the family.
        posterior: q, which takes its parameters from ``encoder``.
        encoder: a network whose output is always overridden.
        x: the input of the posterior, ``(N, …)``.
        init_params: the initial parameters, ``(N, *outputs)``.
        loc, scale: u = loc + scale · z for z ~ q, each ``(N, D)`` or scalar.
    """

    name: str
    posterior: Posterior
    encoder: OverridableNetwork
    x: Tensor
    init_params: Tensor
    loc: Tensor
    scale: Tensor

    def sample(self, params: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """Sample u, ``(num_samples, N, D)``, with log q(u), ``(num_samples, N)``.

        Both are differentiable in the parameters. The gradient of log q flows through the
        samples alone, so it has no variance where q is exact. For a flow it flows through the
        parameters as well, because the density at a given point may not exist or take D passes.

        References:
            Sticking the Landing (Roeder et al., 2017). https://arxiv.org/abs/1703.09194
        """
        q = self._distribution(params)
        z = q.rsample(torch.Size((num_samples,)))
        scorer = q
        if params.requires_grad and not isinstance(q, TransformedDistribution):
            scorer = self._distribution(params.detach())
        log_q = scorer.log_prob(z)
        return self.loc + self.scale * z, log_q - self.scale.log().sum(-1)

    def moments(self, params: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
        """Return means and standard deviations of u, ``(N, D)``.

        They are estimated from ``num_samples`` samples if q has no closed form for them.
        """
        q = self._distribution(params)
        try:
            mean, stddev = q.mean, q.stddev
        except (NotImplementedError, AttributeError):
            u, _ = self.sample(params, num_samples)
            return u.mean(0), u.std(0)
        return self.loc + self.scale * mean, self.scale * stddev

    def _distribution(self, params: Tensor) -> Any:
        with self.encoder.override(params):
            return self.posterior(self.x)


def extract_family(program: ProgramInputs) -> VariationalFamily | None:
    """Return the family of a program's ``posterior``, with its encoder's output as start.

    For a semi-amortised posterior this is the family that it refines, and the initial parameters
    are the refined ones. Parameters outside the family's network stay fixed. ``None`` if the
    program has no single posterior with a single network.
    """
    guide = program.guide
    posterior = getattr(getattr(guide, "__self__", guide), "posterior", None)
    if not isinstance(posterior, Posterior):
        return None
    family = posterior.family if isinstance(posterior, SemiAmortized) else posterior
    network = getattr(family, "network", None)
    if not isinstance(family, Posterior) or not isinstance(network, nn.Module):
        return None
    inputs: list[Any] = []
    outputs: list[Any] = []
    with (
        posterior.register_forward_hook(lambda _, args, __: inputs.append(args[0])),
        network.register_forward_hook(lambda _, __, output: outputs.append(output)),
    ):
        latents = _trace_latents(program)
    size = len(program.x)
    if not (len(latents) == len(inputs) == 1 and outputs):
        return None
    if len(inputs[0]) != size or len(outputs[-1]) != size:
        return None
    # of the last call: a semi-amortised posterior calls the network at every refinement step
    init_params = outputs[-1].detach().clone()
    if isinstance(network, OverridableNetwork):
        encoder, unamortised = network, family
    else:
        encoder = OverridableNetwork(None)
        unamortised = copy.deepcopy(family, {id(network): encoder})
    zero, one = init_params.new_zeros(()), init_params.new_ones(())
    name = get_family_name(type(family))
    return VariationalFamily(name, unamortised, encoder, inputs[0], init_params, zero, one)


def make_family(family: FamilyFactory, x: Tensor, loc: Tensor, scale: Tensor) -> VariationalFamily:
    """Make a family that starts from given moments.

    Its variables are standardised by ``loc`` and ``scale``. Parameters near zero then give the
    starting moments, and one step size suits all variables.

    Arguments:
        family: ``family(event_shape, latent_dim, network)``.
        x: the examples, ``(N, …)``.
        loc, scale: mean and standard deviation of u, ``(N, D)``.

    Raises:
        ValueError: if the family uses more than one network, depends on the model, is defined on
            a sphere, or has parameters besides its network, which would be untrained.
    """
    encoders: list[OverridableNetwork] = []
    shapes: list[Shape] = []

    def network(in_shape: Shape, out_shape: Shape) -> nn.Module:
        encoders.append(OverridableNetwork(None))
        shapes.append(tuple(out_shape))
        return encoders[-1]

    posterior = family(tuple(x.shape[1:]), loc.shape[-1], network)
    name = get_family_name(family)
    if len(encoders) != 1 or not posterior.self_contained:
        raise ValueError(
            f"expected a family with one network that depends on x alone; got {name}: choose the "
            f"family that it is built on"
        )
    if posterior.space is not DiagonalNormal.space:
        raise ValueError(
            f"expected a family on {DiagonalNormal.space}; got {name}, on {posterior.space}: "
            f"choose another family"
        )
    if any(True for _ in posterior.parameters()):
        raise ValueError(
            f"expected a family without parameters besides its network; got {name}, which has "
            f"untrained parameters: choose a normal, or a flow without such parameters"
        )
    init_params = _INIT_SCALE * torch.randn(len(x), *shapes[0], dtype=loc.dtype, device=loc.device)
    scale = scale.clamp(min=torch.finfo(scale.dtype).eps ** 0.5)  # it serves as a unit
    return VariationalFamily(name, posterior.eval(), encoders[0], x, init_params, loc, scale)


def choose_family(program: ProgramInputs) -> FamilyFactory:
    """Return a normal of the form of the guide's only site, or a full-covariance normal."""
    fns = [unwrap_independent(site["fn"]) for site in _trace_latents(program)]
    fn = fns[0] if len(fns) == 1 else None
    if isinstance(fn, Normal):
        return DiagonalNormal
    if isinstance(fn, LowRankMultivariateNormal):
        return partial(LowRankNormal, rank=fn.cov_factor.shape[-1])
    return FullCovarianceNormal


def _trace_latents(program: ProgramInputs) -> list[Site]:
    """Run the guide and return the sites that a family is fitted to."""
    sites = trace_sites(program.guide, program.x, *program.args, **program.kwargs).values()
    return [site for site in sites if is_latent(site) and not is_noise(site)]


def is_noise(site: Site) -> bool:
    """Whether a site is noise shared by model and guide rather than a latent."""
    return bool(site["infer"].get("is_noise"))


def get_family_name(family: object) -> str:
    """Return the display name of a family."""
    while isinstance(family, partial):
        family = family.func
    return getattr(family, "__name__", type(family).__name__)
