"""Posterior families whose network's word is a table, a row of it for each datum."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, TransformedDistribution

from ...core.components import NetworkFactory, Shape
from ...posteriors import (
    DiagonalNormal,
    FullCovarianceNormal,
    LowRankNormal,
    Posterior,
    SemiAmortized,
)
from ...posteriors.encoder import Encoder
from ...programs.base import Site
from ...programs.sites import trace_sites

__all__ = ["Family", "FamilyFactory", "fresh", "like", "name_of", "own"]

#: ``family(event_shape, latent_dim, network)``.
FamilyFactory = Callable[[Shape, int, NetworkFactory], Posterior]

#: The standard deviation of a new family's first word: a flow near the identity, but not at it,
#: where some of its gradients vanish.
_NEAR = 0.01


@dataclass(frozen=True)
class Family:
    """q(u) for each of N data, as a function of the words that a network would say of them.

    Attributes:
        name: of the family.
        posterior: q, which asks ``encoder``.
        encoder: whose word is always overruled.
        x: what the posterior is called with, ``(N, …)``.
        start: the words to start from, ``(N, *outputs)``.
        centre, unit: u = centre + unit · z for z ~ q, each ``(N, D)``; ``None`` for u = z.
    """

    name: str
    posterior: Posterior
    encoder: Encoder
    x: Tensor
    start: Tensor
    centre: Tensor | None = None
    unit: Tensor | None = None

    def draw(self, words: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """So many u, ``(count, N, D)``, and their log-densities, ``(count, N)``.

        Differentiable by the words. The density moves with them through the draws alone, which
        leaves no noise where q is exact; through both where q is a flow, whose density at a
        draw that is not its own may not exist, or takes D passes.

        References:
            Sticking the Landing (Roeder et al., 2017). https://arxiv.org/abs/1703.09194
        """
        q = self._of(words)
        z = q.rsample(torch.Size((count,)))
        held = q
        if words.requires_grad and not isinstance(q, TransformedDistribution):
            held = self._of(words.detach())
        log_q = held.log_prob(z)
        if self.unit is None or self.centre is None:
            return z, log_q
        return self.centre + self.unit * z, log_q - self.unit.log().sum(-1)

    def moments(self, words: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The means and standard deviations of u, ``(N, D)``; of draws if there is no formula."""
        q = self._of(words)
        try:
            mean, scale = q.mean, q.stddev
        except (NotImplementedError, AttributeError):
            drawn, _ = self.draw(words, count)
            return drawn.mean(0), drawn.std(0)
        if self.unit is None or self.centre is None:
            return mean, scale
        return self.centre + self.unit * mean, self.unit * scale

    def _of(self, words: Tensor) -> Any:
        with self.encoder.overruled(words):
            return self.posterior(self.x)


def own(guide: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Family | None:
    """The family of a program's ``posterior``, and what its encoder says of these data.

    A semi-amortised posterior has the family that it refines, and starts from the refined
    words. Weights that a family has besides its network are held.

    Arguments:
        guide: the guide, a method of a program that may have a ``posterior``, called as
            ``guide(*args, **kwargs)``.

    Returns:
        The family, or ``None`` if the program has no single posterior with a single network.
    """
    posterior = getattr(getattr(guide, "__self__", guide), "posterior", None)
    if not isinstance(posterior, Posterior):
        return None
    family = posterior.family if isinstance(posterior, SemiAmortized) else posterior
    network = getattr(family, "network", None)
    if not isinstance(family, Posterior) or not isinstance(network, nn.Module):
        return None
    asked: list[Tensor] = []
    said: list[Tensor] = []
    with ExitStack() as hooks:
        for module, hook in (
            (posterior, lambda _, inputs, __: asked.append(inputs[0])),
            (network, lambda _, __, word: said.append(word)),
        ):
            hooks.callback(module.register_forward_hook(hook).remove)
        sites = trace_sites(guide, *args, **kwargs)
    if len(_latent(sites)) != 1:
        return None
    size = len(args[0])
    # the last word: a semi-amortised posterior asks again for every step
    if len(asked) != 1 or not said or len(asked[0]) != size or len(said[-1]) != size:
        return None
    if isinstance(network, Encoder):
        encoder, made = network, family
    else:
        encoder = Encoder(None)
        made = copy.deepcopy(family, {id(network): encoder})
    return Family(name_of(type(family)), made, encoder, asked[0], said[-1].detach().clone())


def fresh(
    family: FamilyFactory, x: Tensor, centre: Tensor, scale: Tensor, near: float = _NEAR
) -> Family:
    """A family that starts from given moments.

    It is laid over variables that are measured from ``centre`` in units of ``scale``, so that a
    word of nearly nothing is the start, and a step is as good for one variable as for another.

    Arguments:
        family: ``family(event_shape, latent_dim, network)``.
        x: the data, ``(N, …)``.
        centre, scale: of u, ``(N, D)``.

    Raises:
        ValueError: if the family asks for more than one network, needs the model, lives on a
            sphere, or has weights of its own, which nothing has taught.
    """
    made: list[Encoder] = []
    shapes: list[Shape] = []

    def network(in_shape: Shape, out_shape: Shape) -> nn.Module:
        made.append(Encoder(None))
        shapes.append(tuple(out_shape))
        return made[-1]

    posterior = family(tuple(x.shape[1:]), centre.shape[-1], network)
    name = name_of(family)
    if len(made) != 1 or not posterior.self_contained:
        raise ValueError(
            f"expected a family that asks for one network and needs nothing but x; got {name}: "
            f"name the family that it is made of"
        )
    if posterior.space is not DiagonalNormal.space:
        raise ValueError(
            f"expected a family on {DiagonalNormal.space}; got {name}, on {posterior.space}: name "
            f"another"
        )
    if any(True for _ in posterior.parameters()):
        raise ValueError(
            f"expected a family that the network's outputs decide; got {name}, which has weights "
            f"of its own that nothing has taught: name a normal, or a flow without such weights"
        )
    start = near * torch.randn(len(x), *shapes[0], dtype=centre.dtype, device=centre.device)
    return Family(name, posterior.eval(), made[0], x, start, centre, scale)


def like(guide: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> FamilyFactory:
    """The normal family of somebody's own guide: what its only site is, or a full covariance."""
    latent = [site["fn"] for site in _latent(trace_sites(guide, *args, **kwargs)).values()]
    fn = latent[0] if latent else None
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if len(latent) == 1 and isinstance(fn, torch.distributions.Normal):
        return DiagonalNormal
    if len(latent) == 1 and isinstance(fn, torch.distributions.LowRankMultivariateNormal):
        return partial(LowRankNormal, rank=fn.cov_factor.shape[-1])
    return FullCovarianceNormal


def _latent(sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites that a family is fitted to."""
    return {n: s for n, s in sites.items() if not s["is_observed"] and not is_noise(s)}


def is_noise(site: Site) -> bool:
    """Whether a site is noise of the program and no latent: the same in model and guide."""
    return bool(site["infer"].get("is_noise"))


def name_of(family: object) -> str:
    """What a table calls a family."""
    while isinstance(family, partial):
        family = family.func
    return getattr(family, "__name__", type(family).__name__)
