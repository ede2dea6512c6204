"""The decoder of a program as a function of a latent vector and a condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ...data.scaling import Scale, in_data_units
from ...programs.base import is_latent
from ...programs.simulation import prior_predictive_sites

__all__ = ["Decoder"]


@dataclass(frozen=True)
class Decoder:
    """p(x | z, c) of a program that samples without data, at the latents z of one site.

    Results are in the units of the data, one example each: ``(1, *event_shape)`` at z of shape
    ``(1, D)``.

    Attributes:
        program: the program.
        site: the latent site that is set, the first one that the model samples.
        data_site: the site of the data.
        others: the other latent sites.
        scale: the scale of the data that results are returned without.
    """

    program: Any
    site: str
    data_site: str
    others: tuple[str, ...]
    scale: Scale | None

    @classmethod
    def create(
        cls, program: Any, conditions: Tensor | None, size: int, scale: Scale | None
    ) -> tuple[Decoder, Tensor]:
        """Return the decoder of a program, and ``size`` samples of its latents, ``(size, D)``.

        Arguments:
            program: the program, with a ``model`` and an ``event_shape``.
            conditions: the conditions of the samples, ``(size, …)``, if it has any.
            size: the number of samples.
            scale: the scale of the data.

        Raises:
            ValueError: if the model does not run without data, or has several sites of the data,
                or if its first site is not a vector per example.
        """
        args = () if conditions is None else (conditions,)
        data, sites = prior_predictive_sites(program.model, size, None, args)
        data_site, *more = data.sites
        shape = tuple(sites[data_site]["value"].shape)
        if more or shape != (size, *program.event_shape):
            raise ValueError(
                f"expected a program with one site of data of shape {program.event_shape}; got "
                f"{', '.join(map(repr, data.sites))}, the first of shape {shape[1:]}"
            )
        latents = {n: s for n, s in sites.items() if is_latent(s) and n != data_site}
        site = next((n for n, s in latents.items() if not s["infer"].get("is_noise")), None)
        value = None if site is None else latents[site]["value"]
        if site is None or value is None or value.ndim != 2 or len(value) != size:
            got = "none" if value is None else f"{site!r} of shape {tuple(value.shape[1:])}"
            raise ValueError(
                f"expected a program whose first latent site is a vector per example; got {got}"
            )
        others = tuple(name for name in latents if name != site)
        return cls(program, site, data_site, others, scale), value

    def mean(self, z: Tensor, *args: Tensor) -> Tensor:
        """Return the mean of p(x | z, c); the other latents are at the means of their sites.

        Raises:
            ValueError: if one of these distributions has no mean.
        """
        fn = self._run(z, args, at_means=True)["fn"]
        return in_data_units(_mean(fn), self.scale)

    def draw(self, z: Tensor, *args: Tensor) -> Tensor:
        """Return a sample of p(x | z, c); the other latents are samples, too."""
        return in_data_units(self._run(z, args, at_means=False)["value"], self.scale)

    def _run(self, z: Tensor, args: tuple[Tensor, ...], at_means: bool) -> Any:
        with _SetLatents({self.site: z}, self.others if at_means else ()):
            trace = poutine.trace(self.program.model).get_trace(None, *args, size=1)
        return trace.nodes[self.data_site]


class _SetLatents(Messenger):
    """Set the values of some sites, and those of others to the means of their distributions."""

    def __init__(self, values: dict[str, Tensor], at_means: tuple[str, ...]) -> None:
        super().__init__()
        self._values, self._at_means = values, at_means

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        if msg["name"] in self._values:
            msg["value"] = self._values[msg["name"]]
        elif msg["name"] in self._at_means:
            msg["value"] = _mean(msg["fn"])


def _mean(fn: Any) -> Tensor:
    try:
        return fn.mean
    except (NotImplementedError, AttributeError):
        raise ValueError(
            f"expected distributions with a mean, to show the mean of p(x|z); got "
            f"{type(fn).__name__}, which has none"
        ) from None
