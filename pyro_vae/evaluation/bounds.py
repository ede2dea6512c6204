"""``evaluate``: the ELBO beside every L_k and log p̂, with errors and diagnostics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import _files
from .._inputs import fixed, inputs
from .._programs import Labels, Program, labels_of
from .._random import seeded
from ..data.splits import Split
from ..particles import stream
from .importance import Block, khat_threshold

if TYPE_CHECKING:
    import xarray

__all__ = ["Bounds", "Estimate", "evaluate"]

#: The L_k that papers print.
PRINTED = (5, 50, 500, 5000)

_HAT = "\N{COMBINING CIRCUMFLEX ACCENT}"


class Estimate(NamedTuple):
    """A mean over data, in nats, with its two standard errors.

    Attributes:
        value: the mean over data.
        se_data: the spread of the data: how far the mean over *other* data of the same kind
            would be. Includes the Monte Carlo noise. NaN for a single datum.
        se_monte_carlo: the noise of the draws alone: how far a repetition on the *same* data
            would be. NaN where a single draw cannot tell.
    """

    value: float
    se_data: float
    se_monte_carlo: float


@dataclass(frozen=True)
class Bounds:
    """What importance sampling says of log p(x), datum by datum.

    All values are in nats per datum; higher is better. The ELBO and every L_k are lower
    bounds of log p(x) in expectation; log p̂ is L_K, the tightest of them, read as an estimate
    whose bias is downwards.

    Attributes:
        num_samples: the number K of draws for each datum.
        per_datum: arrays of length N: ``elbo``, ``log_evidence``, ``khat``, ``ess``, and the
            Monte Carlo variances ``elbo_variance``, ``log_evidence_variance`` and
            ``gap_variance``.
        iwae_per_datum: L_k of each datum, ``(N,)``, by k.
        iwae_variance: their Monte Carlo variances, ``(N,)``, by k.
        log_weights: the raw log weights ``(K, N)``, if they were kept.
        seed: the seed of the draws.
    """

    num_samples: int
    per_datum: dict[str, np.ndarray]
    iwae_per_datum: dict[int, np.ndarray]
    iwae_variance: dict[int, np.ndarray]
    log_weights: np.ndarray | None = None
    seed: int | None = None

    def __len__(self) -> int:
        return len(self.per_datum["elbo"])

    @property
    def elbo(self) -> float:
        """The evidence lower bound, nats per datum."""
        return self.estimates["elbo"].value

    @property
    def iwae(self) -> dict[int, float]:
        """L_k by k, nats per datum."""
        return {k: float(values.mean()) for k, values in self.iwae_per_datum.items()}

    @property
    def log_evidence(self) -> float:
        """log p̂(x), nats per datum: an estimate whose bias, of order 1/K, is downwards."""
        return self.estimates["log_evidence"].value

    @property
    def gap(self) -> float:
        """log p̂ − ELBO, nats per datum: about E_x KL(q(z|x) ‖ p(z|x))."""
        return self.estimates["gap"].value

    @property
    def estimates(self) -> dict[str, Estimate]:
        """``elbo``, ``iwae_5`` …, ``log_evidence`` and ``gap`` with their standard errors."""
        data, k_data, k_variance = self.per_datum, self.iwae_per_datum, self.iwae_variance
        rows = {"elbo": _estimate(data["elbo"], data["elbo_variance"])}
        rows |= {f"iwae_{k}": _estimate(k_data[k], k_variance[k]) for k in k_data}
        rows["log_evidence"] = _estimate(data["log_evidence"], data["log_evidence_variance"])
        with np.errstate(invalid="ignore"):  # a datum without density has no gap
            rows["gap"] = _estimate(data["log_evidence"] - data["elbo"], data["gap_variance"])
        return rows

    @property
    def unreliable(self) -> np.ndarray:
        """The indices of the data whose k̂ says that log p̂ is not to be trusted."""
        return np.flatnonzero(~(self.per_datum["khat"] < khat_threshold(self.num_samples)))

    @property
    def warning(self) -> str | None:
        """One plain sentence if some estimates cannot be trusted, else ``None``."""
        count = len(self.unreliable)
        if not count:
            return None
        if np.isnan(self.per_datum["khat"]).all():
            return (
                f"With {self.num_samples} draws there is no k̂ (it needs 25 or more), so nothing is "
                f"known of the weights' tail: log p̂ is a lower bound in expectation, no more."
            )
        threshold = khat_threshold(self.num_samples)
        return (
            f"For {count} of {len(self)} data k̂ is above {threshold:.2f}: there the weights' tail "
            f"is so heavy that log p̂ from {self.num_samples} draws, and its Monte Carlo error, "
            f"cannot be trusted; ELBO and L_k remain lower bounds in expectation. More draws or a "
            f"better guide would help."
        )

    @property
    def plateau(self) -> int | None:
        """The smallest k from which L_k rises no further than log p̂ can be told from noise.

        L_k rises for ever, ever less: this is where log p̂ − L_k is at most twice the Monte
        Carlo standard error of log p̂. ``None`` if no k < K is there, or if most k̂ are bad, so
        that the noise is not known.
        """
        if 2 * len(self.unreliable) > len(self):
            return None
        evidence = self.estimates["log_evidence"]
        for k, bound in self.iwae.items():
            if k < self.num_samples and evidence.value - bound <= 2 * evidence.se_monte_carlo:
                return k
        return None

    @property
    def labels(self) -> dict[str, tuple[str, str]]:
        """What a table calls each of :attr:`estimates`, and what it is to log p(x)."""
        names = {"elbo": ("ELBO", "lower bound")}
        names |= {f"iwae_{k}": (f"L_{k}", "lower bound") for k in self.iwae_per_datum}
        return names | {"log_evidence": ("log p̂", "estimate"), "gap": ("log p̂ − ELBO", "gap")}

    def summary(self) -> dict[str, Any]:
        """The figures of the table as plain numbers, for JSON. Non-finite ones become null."""
        khat, ess = self.per_datum["khat"], self.per_datum["ess"]
        return {
            "num_data": len(self),
            "num_samples": self.num_samples,
            "seed": self.seed,
            "units": "nats per datum",
            "estimates": {
                name: {key: _json(value) for key, value in row._asdict().items()}
                for name, row in self.estimates.items()
            },
            "khat": {"median": _json(np.median(khat)), "worst": _json(khat.max())},
            "khat_threshold": _json(khat_threshold(self.num_samples)),
            "unreliable": len(self.unreliable),
            "ess": {"median": _json(np.median(ess)), "worst": _json(ess.min())},
        }

    def table(self, ks: Sequence[int] | None = None) -> str:
        """The estimates as text.

        Arguments:
            ks: the L_k to show; all that there are if not given.
        """
        shown = [k for k in self.iwae_per_datum if ks is None or k in ks or k == self.num_samples]
        lines = [
            f"{len(self)} data × {self.num_samples} draws; nats per datum, higher is better",
            f"{'':14}{'mean':>11}{'± data':>10}{'± MC':>10}",
        ]
        for key, row in self.estimates.items():
            if key.startswith("iwae_") and int(key.removeprefix("iwae_")) not in shown:
                continue
            label, role = self.labels[key]
            numbers = f"{row.value:11.3f}{row.se_data:10.3f}{row.se_monte_carlo:10.3f}"
            # the circumflex of p̂ takes no room of its own
            lines.append(f"{label:{14 + label.count(_HAT)}}{numbers}  {role}")
        khat, ess = self.per_datum["khat"], self.per_datum["ess"]
        lines.append(
            f"k̂ median {np.median(khat):.2f}, worst {khat.max():.2f}; "
            f"ESS median {np.median(ess):.1f}, worst {ess.min():.1f}"
        )
        if self.warning:
            lines.append(self.warning)
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def to_datatree(self) -> xarray.DataTree:
        """The results per datum as an ``xarray.DataTree``.

        Group ``bounds`` holds ``elbo``, ``iwae`` (k, datum), ``log_evidence``, ``khat``, ``ess``
        and variances; group ``sample_stats`` the raw ``log_weight`` (chain, draw, datum), if
        they were kept.
        """
        import xarray

        columns: dict[str, Any] = {n: ("datum", v) for n, v in self.per_datum.items()}
        ks = list(self.iwae_per_datum)
        columns["iwae"] = (("k", "datum"), np.stack(list(self.iwae_per_datum.values())))
        columns["iwae_variance"] = (("k", "datum"), np.stack(list(self.iwae_variance.values())))
        attributes = {"num_samples": self.num_samples, "units": "nats"}
        if self.seed is not None:
            attributes["seed"] = self.seed
        coords = {"k": ks, "datum": np.arange(len(self))}
        groups = {"bounds": xarray.Dataset(columns, coords=coords, attrs=attributes)}
        if self.log_weights is not None:
            raw = {"log_weight": (("chain", "draw", "datum"), self.log_weights[None])}
            groups["sample_stats"] = xarray.Dataset(raw)
        return xarray.DataTree.from_dict(groups)

    def to_netcdf(self, path: str | Path) -> None:
        """Writes :meth:`to_datatree` to a NetCDF file, whole or not at all; ArviZ reads it."""
        tree = self.to_datatree()
        _files.write(Path(path), lambda file: tree.to_netcdf(file, engine="h5netcdf"))

    @classmethod
    def from_netcdf(cls, path: str | Path) -> Bounds:
        """Reads what :meth:`to_netcdf` wrote.

        Raises:
            ValueError: if the file is not one of these.
        """
        import xarray

        try:
            with xarray.open_datatree(path, engine="h5netcdf") as tree:
                tree.load()
            bounds = tree["bounds"].to_dataset()
            ks = [int(k) for k in bounds["k"]]
            raw = tree["sample_stats/log_weight"].to_numpy()[0] if "sample_stats" in tree else None
            return cls(
                num_samples=int(bounds.attrs["num_samples"]),
                per_datum={str(n): v.to_numpy() for n, v in bounds.items() if v.dims == ("datum",)},
                iwae_per_datum={k: bounds["iwae"].sel(k=k).to_numpy() for k in ks},
                iwae_variance={k: bounds["iwae_variance"].sel(k=k).to_numpy() for k in ks},
                log_weights=raw,
                seed=int(bounds.attrs["seed"]) if "seed" in bounds.attrs else None,
            )
        except FileNotFoundError:
            raise
        except (OSError, KeyError, IndexError) as error:
            raise ValueError(f"expected {path} to hold bounds from pyro_vae; {error}") from error


def evaluate(
    program: Program | tuple[Any, Any],
    data: Split | Tensor,
    *args: Any,
    num_samples: int = 5000,
    ks: Sequence[int] = PRINTED,
    seed: int = 0,
    keep_log_weights: bool = False,
    chunk_size: int | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> Bounds:
    """Bounds of log p(x) and an estimate of it for every datum, from one set of weights.

    Streamed: the log weights are reduced as they are drawn, so that memory depends on the
    chunk and not on N × K (unless the raw weights are asked for).

    Arguments:
        program: anything with a ``model`` and a ``guide``, or a pair of them.
        data: the data, a tensor ``(N, …)`` or a :class:`~pyro_vae.data.Split`; one whose
            pixels or noise are drawn anew at every use has them drawn once, with ``seed``. A
            program that conditions on labels is given those of a ``Split``, unless there are
            further arguments.
        *args: further arguments of model and guide, as are ``**kwargs``; tensors of leading
            size N are per datum (see :func:`~pyro_vae.log_weights`).
        num_samples: the number K of draws for each datum.
        ks: the L_k to report; those above K are left out, and L_K is always among them.
        seed: of the draws and of the binarisation; global generators are left as they were.
        keep_log_weights: keep the raw weights, float32 ``(K, N)``, in the result.
        chunk_size: how many (draw, datum) pairs to hold at once; chosen if not given.
        progress: show a progress bar on the standard error.

    Returns:
        The :class:`Bounds`.

    Raises:
        ValueError: if the data are empty, cannot be scored or lack labels that the program
            conditions on, if ``num_samples`` or a k is not a positive integer, if the program's
            weights do not exist per datum, or if a weight is NaN.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015). https://arxiv.org/abs/1509.00519
    """
    model, guide = program if isinstance(program, tuple) else (program.model, program.guide)
    if any(isinstance(k, bool) or not isinstance(k, Integral) or k < 1 for k in ks):
        raise ValueError(f"expected every k in ks to be an integer ≥ 1; got {tuple(ks)}")
    # labels that the caller gives by himself are those that count
    given = (fixed(data, seed),) if args or kwargs else inputs(program, data, seed)
    x, *args = (*given, *args)  # type: ignore[assignment]
    if isinstance(program, torch.nn.Module):
        device = next((p.device for p in program.parameters()), x.device)
        x, *args = (_moved(value, device) for value in (x, *args))  # type: ignore[assignment]
        kwargs = {name: _moved(value, device) for name, value in kwargs.items()}
    if hasattr(program, "check"):
        conditioned = labels_of(program) is Labels.CONDITION
        conditions = (*args, *kwargs.values())[:1] if conditioned else ()
        program.check(x, *conditions)  # type: ignore[union-attr]
    weights = stream(
        model, guide, x, *args, num_samples=num_samples, chunk_size=chunk_size, **kwargs
    )
    blocks, raw = [], []
    block: Block | None = None
    with seeded(seed, 1), _bar(progress, len(x), num_samples) as bar, closing(weights):
        for datums, draws, log_w in weights:
            log_w = log_w.cpu()
            if block is None or draws.start == 0:
                block = Block(log_w.shape[1], num_samples, ks, len(x))
                blocks.append(block)
                raw.append([])
            block.update(log_w.double(), datums.start)
            if keep_log_weights:
                raw[-1].append(log_w.float())
            if draws.stop == num_samples:
                blocks[-1] = block.result()
            bar.update(log_w.numel())
    columns = {name: torch.cat([b[name] for b in blocks]).numpy() for name in blocks[0]}
    num_samples = int(num_samples)
    sizes = sorted({int(k) for k in ks if k <= num_samples} | {num_samples})
    return Bounds(
        num_samples=num_samples,
        per_datum={n: v for n, v in columns.items() if not n.startswith("iwae_")},
        iwae_per_datum={k: columns[f"iwae_{k}"] for k in sizes},
        iwae_variance={k: columns[f"iwae_{k}_variance"] for k in sizes},
        log_weights=torch.cat([torch.cat(r) for r in raw], 1).numpy() if keep_log_weights else None,
        seed=seed,
    )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _estimate(values: np.ndarray, variances: np.ndarray) -> Estimate:
    size = len(values)
    spread = float(values.std(ddof=1)) if size > 1 else math.nan
    return Estimate(
        value=float(values.mean()),
        se_data=spread / math.sqrt(size),
        se_monte_carlo=float(np.sqrt(variances.sum()) / size),
    )


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _bar(progress: bool, size: int, num_samples: int) -> tqdm:
    return tqdm(
        total=size * num_samples,
        desc="evaluate",
        unit=" draws",
        unit_scale=True,
        disable=not progress,
        dynamic_ncols=True,
    )
