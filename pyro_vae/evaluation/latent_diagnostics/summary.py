"""All latent diagnostics of a program: active units, KL per latent, rate and ELBO surgery."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...core.figures import get_axes, make_figure, use_integer_ticks
from ...core.validation import did_you_mean
from ...data import Dataset
from ...programs.base import Program
from ...programs.inputs import AnyData, AnyProgram, normalize_order
from ..estimates import Estimate
from ..results import Result
from ..sections import Picture, Section
from ..slices import Evaluation, SplitName
from ..tables import Caution, Table
from .activity import ActiveUnits, active_units
from .elbo_surgery import NoAggregateError, Surgery, surgery
from .kl import Divergences, SiteDivergence, divergences

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "LATENTS",
    "ActiveUnits",
    "Latents",
    "active_units",
    "latents",
    "plot_latent_units",
]

#: Colours of latent units.
_ACTIVE_COLOR, _INACTIVE_COLOR = "C0", "0.65"
#: Lower limit of variances on a logarithmic axis.
_MIN_VARIANCE = 1e-5


@dataclass(frozen=True, repr=False)
class Latents(Result):
    """Active units, KL of each latent, and mutual information of data and latents.

    Attributes:
        active: variance over the data of each unit's posterior mean.
        divergences: KL of each site and dimension; rate and distortion.
        surgery: mutual information, and KL of the aggregate posterior to the prior; ``None`` if
            the aggregate posterior has no tractable density.
        no_surgery_reason: the reason if ``surgery`` is ``None``.
    """

    contents: ClassVar[str] = "latent diagnostics"

    active: ActiveUnits
    divergences: Divergences
    surgery: Surgery | None
    no_surgery_reason: str | None = None

    def __len__(self) -> int:
        return len(self.divergences)

    def summary(self) -> dict[str, Any]:
        """The values as plain numbers and lists for JSON. Non-finite values become null."""
        summary = self.divergences.summary()
        for name, site in summary["sites"].items():
            variance = self.active.variance.get(name)  # a discrete site has no mean
            kl = self.divergences.sites[name].dimensions
            site |= {
                "variance": None if variance is None else variance.tolist(),
                "active": self.active.counts.get(name),
                "units": None if variance is None else len(variance),
                "sorted": None if kl is None else sorted(kl.tolist(), reverse=True),
            }
        return {
            **summary,
            "threshold": self.active.threshold,
            "surgery": None if self.surgery is None else self.surgery.summary(),
            "without_surgery": self.no_surgery_reason,
        }

    def __str__(self) -> str:
        parts = [str(self.divergences), str(self.active)]
        reason = f"no ELBO surgery: {self.no_surgery_reason}"
        return "\n\n".join([*parts, reason if self.surgery is None else str(self.surgery)])

    def __repr__(self) -> str:
        return "\n".join(map(str, self.parts()))

    def parts(self) -> Iterable[str | Table]:
        """Return the number of active units, the tables and the warning."""
        divergences, surgery = self.divergences, self.surgery
        yield f"{len(self)} examples × {divergences.num_samples} samples; nats per datum"
        yield divergences.make_table()
        yield str(self.active)
        if surgery is None:
            yield f"no ELBO surgery: {self.no_surgery_reason}"
            return
        rows = surgery.estimates.items()
        values = "; ".join(
            f"{n.replace('_', ' ')} {e.value:.3f} ± {e.se_data:.3f}" for n, e in rows
        )
        yield f"rate by ELBO surgery, of {surgery.num_data} examples: {values}"
        if surgery.warning:
            yield Caution(surgery.warning)

    def plot(self, site: str | None = None, ax: Axes | None = None) -> Axes:
        """Plot the KL of each unit of a latent site, sorted; inactive units are grey.

        Where the KL is not a sum over units, plot the variance of each unit's posterior mean.

        Arguments:
            site: a latent site; the first one with units by default.
            ax: Matplotlib axes to draw on; those of a new figure by default.

        Raises:
            ValueError: if there is no such site, or if it has no units.
        """
        sites, variances = self.divergences.sites, self.active.variance
        known = [n for n, s in sites.items() if s.dimensions is not None or n in variances]
        name = known[0] if site is None and known else site
        if name is None or name not in known:
            raise ValueError(
                f"expected a latent site with units ({', '.join(known)}); got {site!r}"
                f"{did_you_mean(str(site), known)}"
            )
        kl, variance = sites[name].dimensions, variances.get(name)
        axes, values = get_axes(ax), variance if kl is None else kl
        assert values is not None
        order = np.argsort(-values)
        colors = _unit_colors(variance, self.active.threshold, order)
        if kl is None:
            label = f"units of {name}, sorted by variance"
            _plot_variance(axes, values[order], colors, label, self.active.threshold)
        else:
            _plot_kl(axes, values[order], colors, name)
        return axes

    def to_datatree(self) -> xarray.DataTree:
        """The results per example as an ``xarray.DataTree``.

        Group ``divergences`` holds ``rate``, ``distortion`` and ``elbo``. Group ``surgery``, if
        present, holds ``divergence``, ``mutual_information`` and ``marginal`` of the evaluated
        examples. Each column comes with its Monte Carlo variance. The values of each site and
        unit are JSON, in the attributes ``sites`` and ``active``.
        """
        import xarray

        divergences, surgery = self.divergences, self.surgery
        index = np.arange(len(divergences))
        groups = {"divergences": _make_dataset(divergences.per_datum, index)}
        groups["divergences"].attrs = {
            "num_samples": divergences.num_samples,
            "units": "nats",
            "seed": divergences.seed,
            "sites": _to_json({name: asdict(site) for name, site in divergences.sites.items()}),
            "active": _to_json(asdict(self.active)),
            "no_surgery_reason": self.no_surgery_reason or "",
        }
        if surgery is not None:
            groups["surgery"] = _make_dataset(surgery.per_datum, surgery.index)
            groups["surgery"].attrs = {
                "num_samples": surgery.num_samples,
                "num_data": surgery.num_data,
                "units": "nats",
                "seed": surgery.seed,
            }
        return xarray.DataTree.from_dict(groups)

    @classmethod
    def from_datatree(cls, tree: xarray.DataTree) -> Latents:
        """Return the diagnostics in a tree made by :meth:`to_datatree`."""
        group = tree["divergences"].to_dataset()
        active = json.loads(group.attrs["active"])
        for name in ("variance", "se"):
            active[name] = {site: np.array(v) for site, v in active[name].items()}
        sites = {
            name: SiteDivergence(
                total=Estimate(*site["total"]),
                dimensions=_to_array(site["dimensions"]),
                errors=_to_array(site["errors"]),
                closed_form=site["closed_form"],
            )
            for name, site in json.loads(group.attrs["sites"]).items()
        }
        numbers = [int(group.attrs[name]) for name in ("num_samples", "seed")]
        kl, surgery = Divergences(sites, _get_columns(group), *numbers), None
        if "surgery" in tree:
            parts = tree["surgery"].to_dataset()
            numbers = [int(parts.attrs[name]) for name in ("num_data", "num_samples", "seed")]
            surgery = Surgery(_get_columns(parts), parts["datum"].to_numpy(), *numbers)
        reason = group.attrs["no_surgery_reason"] or None
        return cls(ActiveUnits(**active), kl, surgery, reason)


def latents(
    program: AnyProgram,
    data: AnyData,
    *args: Any,
    num_samples: int = 64,
    num_draws: int = 10_000,
    threshold: float = 0.01,
    seed: int = 0,
    progress: bool = False,
    **kwargs: Any,
) -> Latents:
    """Run all latent diagnostics on the same data with the same seed.

    These are :func:`active_units`, :func:`~pyro_vae.evaluation.divergences` and
    :func:`~pyro_vae.evaluation.surgery`. The last is skipped for a program whose aggregate
    posterior has no tractable density.

    Arguments:
        program: any object with a ``model`` and a ``guide``, a pair of them, or model and guide as
            separate arguments before the data.
        data: the examples, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`, two or more.
        *args: additional arguments of model and guide, as are ``**kwargs`` (see
            :func:`~pyro_vae.evaluate`).
        num_samples: samples for each example, two or more, for active units, rate and
            distortion.
        num_draws: total number of samples from the aggregate posterior.
        threshold: the variance of its posterior mean above which a unit is active.
        seed: seed of all samples and of the binarisation.
        progress: show progress bars on standard error.

    Returns:
        The :class:`Latents`.

    Raises:
        ValueError: if there are fewer than two examples or samples, or as for
            :func:`~pyro_vae.evaluate`.

    Example:
        >>> latents = pv.latents(vae, x, num_samples=8, num_draws=100)
        >>> latents.divergences.sites["z"].dimensions.shape  # KL of each latent
        (2,)
    """
    program, data, args = normalize_order(program, data, args)
    rows = getattr(data, "rows", None)
    args, options = (program, data, *args), {**kwargs, "seed": seed}
    active = active_units(*args, num_samples=num_samples, threshold=threshold, **options)
    options["progress"] = progress
    kl = divergences(*args, num_samples=num_samples, **options)
    try:
        parts = surgery(*args, num_draws=num_draws, **options)
        return Latents(active, kl, parts).with_rows(rows)
    except NoAggregateError as error:
        return Latents(active, kl, None, str(error)).with_rows(rows)


def _make_dataset(columns: Mapping[str, np.ndarray], index: np.ndarray) -> xarray.Dataset:
    import xarray

    return xarray.Dataset({n: ("datum", v) for n, v in columns.items()}, coords={"datum": index})


def _get_columns(dataset: xarray.Dataset) -> dict[str, np.ndarray]:
    return {str(name): column.to_numpy() for name, column in dataset.items()}


def _to_array(values: list[float] | None) -> np.ndarray | None:
    return None if values is None else np.array(values)


def _to_json(value: Any) -> str:
    return json.dumps(value, default=np.ndarray.tolist, ensure_ascii=False)


def _make_section(latents: Latents) -> Section:
    """Return the section of the report."""
    tables, about, pictures = [latents.divergences.make_table()], [], []
    surgery = latents.surgery
    if surgery is None:
        about.append(f"No ELBO surgery: {latents.no_surgery_reason}.")
    else:
        tables.append(surgery.make_table())
        about.append(
            f"The second table is for the aggregate posterior of {surgery.num_data} examples; the "
            f"mutual information is at most log N = {surgery.limit:.2f}."
        )
    active = latents.active
    for name, site in latents.divergences.sites.items():
        variance = active.variance.get(name)
        caption = f"KL of {name}: {site.total.value:.3f} nats."
        if variance is not None:
            count = active.counts[name]
            caption += f" {count} of {len(variance)} units are active."
            caption += " The others are grey." if count < len(variance) else ""
        if variance is None and site.dimensions is None:
            about.append(caption)
            continue
        figure = plot_latent_units(site.dimensions, variance, active.threshold, name)
        pictures.append(Picture(f"units-{name}", f"Units of {name}", caption, figure))
    warning = surgery.warning if surgery is not None else None
    caution = f"{warning[0].upper()}{warning[1:]}." if warning else ""
    return Section(tables, pictures, " ".join(about), caution)


def plot_latent_units(
    kl: np.ndarray | None, variance: np.ndarray | None, threshold: float, name: str
) -> Figure:
    """Plot the KL and the variance of the posterior mean of all units of a site, sorted.

    Arguments:
        kl: the KL of each unit in nats, ``(D,)``, or ``None``.
        variance: the variance of each unit's posterior mean, or ``None``, but not both.
        threshold: variance above which a unit is active.
        name: name of the site.
    """
    panels = [values for values in (kl, variance) if values is not None]
    figure, column = make_figure(height=2.5 * len(panels), panels=len(panels))
    order = np.argsort(-panels[0])
    colors = _unit_colors(variance, threshold, order)
    if kl is not None:
        _plot_kl(column[0], kl[order], colors, name)
    if variance is not None:
        note = "in the same order" if kl is not None else "sorted by variance"
        _plot_variance(column[-1], variance[order], colors, f"units of {name}, {note}", threshold)
    return figure


def _unit_colors(variance: np.ndarray | None, threshold: float, order: np.ndarray) -> list[str]:
    active = np.ones(len(order), bool) if variance is None else variance > threshold
    return np.where(active[order], _ACTIVE_COLOR, _INACTIVE_COLOR).tolist()


def _plot_kl(axes: Axes, kl: np.ndarray, colors: list[str], name: str) -> None:
    axes.bar(range(1, len(kl) + 1), kl, color=colors, width=0.9)
    axes.set_ylabel("KL (nats per datum)")
    axes.set_xlabel(f"units of {name}, sorted by KL")
    use_integer_ticks(axes)


def _plot_variance(
    axes: Axes, variance: np.ndarray, colors: list[str], label: str, threshold: float
) -> None:
    shown = np.maximum(variance, _MIN_VARIANCE)
    axes.bar(range(1, len(shown) + 1), shown, color=colors, width=0.9)
    axes.axhline(threshold, color="C3", ls="--", lw=1, label=f"active above {threshold:g}")
    axes.set_yscale("log")
    axes.set_ylim(bottom=_MIN_VARIANCE / 2)
    axes.set_ylabel("variance of the\nposterior mean")
    axes.set_xlabel(label)
    use_integer_ticks(axes)
    axes.legend(frameon=False, loc="upper right")


def _compute(
    program: Program,
    dataset: Dataset,
    *,
    split: SplitName = "test",
    num_data: int | None = None,
    checkpoint: object,
    **options: Any,
) -> Latents:
    """Measure active units, the KL of each latent and the mutual information with the data.

    Arguments:
        split: data split.
        num_data: use only the first examples of the split.
    """
    return latents(program, dataset.take(split, num_data), **options)


LATENTS = Evaluation(
    name="latents",
    title="Latent variables",
    compute=_compute,
    function=latents,
    result=Latents,
    make_section=_make_section,
    resumable=False,
)
