"""Published results with their sources, in nats per datum (higher is better)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "IWAE_TABLE_1",
    "IWAE_TABLE_2",
    "IWAE_TABLE_3",
    "SYLVESTER",
    "VAMPPRIOR",
    "Published",
    "iwae_row_name",
]

_IWAE_PAPER = "Burda, Grosse & Salakhutdinov 2015, arXiv 1509.00519"


@dataclass(frozen=True)
class Published:
    """A published log-likelihood.

    Attributes:
        value: the log-likelihood in nats per datum, i.e. minus the NLL that papers print.
        source: paper and table.
        units: the number of active units of each layer, bottom up, if published.
        confirmed: whether the number was checked against the source. Unconfirmed numbers are
            printed but not compared.
    """

    value: float
    source: str
    units: tuple[int, ...] = ()
    confirmed: bool = True

    def __str__(self) -> str:
        text = f"{self.value:.2f}".replace("-", "−")
        text += f" / {'+'.join(map(str, self.units))}" if self.units else ""
        return text if self.confirmed else f"{text} (unconfirmed)"

    def record(self) -> dict[str, Any]:
        """Return the entry of a results file."""
        units = {"units": list(self.units)} if self.units else {}
        record = {"value": self.value, "source": self.source, "confirmed": self.confirmed}
        return {**record, **units}


def _parse_published(text: str, source: str) -> Published:
    """Parse "NLL / active units", the format of the paper's tables."""
    nll, _, units = text.partition(" / ")
    return Published(-float(nll), source, tuple(int(n) for n in units.split("+")) if units else ())


def iwae_row_name(layers: int, objective: str, k: int) -> str:
    """Return the name of a row of the IWAE paper's tables."""
    return f"{layers} layer{'s' if layers > 1 else ''}: {objective}, k = {k}"


def _parse_rows(
    source: str, printed: Mapping[tuple[int, int], tuple[str, str]]
) -> dict[str, Published]:
    return {
        iwae_row_name(layers, objective, k): _parse_published(text, source)
        for (layers, k), pair in printed.items()
        for objective, text in zip(("VAE", "IWAE"), pair, strict=True)
    }


#: By data set, then by row. The VAE averages its k samples.
IWAE_TABLE_1 = {
    "mnist": _parse_rows(
        f"{_IWAE_PAPER}, table 1",
        {
            (1, 1): ("86.76 / 19", "86.76 / 19"),
            (1, 5): ("86.47 / 20", "85.54 / 22"),
            (1, 50): ("86.35 / 20", "84.78 / 25"),
            (2, 1): ("85.33 / 16+5", "85.33 / 16+5"),
            (2, 5): ("85.01 / 17+5", "83.89 / 21+5"),
            (2, 50): ("84.78 / 17+5", "82.90 / 26+7"),
        },
    ),
    "omniglot": _parse_rows(
        f"{_IWAE_PAPER}, table 1",
        {
            (1, 1): ("108.11 / 28", "108.11 / 28"),
            (1, 5): ("107.62 / 28", "106.12 / 34"),
            (1, 50): ("107.80 / 28", "104.67 / 41"),
            (2, 1): ("107.58 / 28+4", "107.56 / 30+5"),
            (2, 5): ("106.31 / 30+5", "104.79 / 38+6"),
            (2, 50): ("106.30 / 30+5", "103.38 / 44+7"),
        },
    ),
}
IWAE_TABLE_2 = {
    "VAE, then IWAE, k = 50": _parse_published("84.88 / 22", f"{_IWAE_PAPER}, table 2"),
    "IWAE, k = 50, then VAE": _parse_published("86.02 / 23", f"{_IWAE_PAPER}, table 2"),
}
IWAE_TABLE_3 = _parse_rows(
    f"{_IWAE_PAPER}, table 3 (Larochelle's binarisation)",
    {
        (1, 1): ("88.71", "88.71"),
        (1, 5): ("88.83", "87.63"),
        (1, 50): ("89.05", "87.10"),
        (2, 1): ("88.08", "88.08"),
        (2, 5): ("87.63", "86.17"),
        (2, 50): ("87.86", "85.32"),
    },
)

_VAMPPRIOR_SOURCE = (
    "third-party reproduction of Tomczak & Welling 2018, arXiv 1705.07120, static MNIST"
)
VAMPPRIOR = {
    "StandardNormal": Published(-89.8, _VAMPPRIOR_SOURCE),
    "VampPrior": Published(-85.8, _VAMPPRIOR_SOURCE),
}

_SYLVESTER_SOURCE = "van den Berg et al. 2018, arXiv 1803.05649, table 1"
SYLVESTER = {
    "DiagonalNormal": Published(-82.14, _SYLVESTER_SOURCE, confirmed=False),
    "PlanarFlow": Published(-81.91, _SYLVESTER_SOURCE, confirmed=False),
    "InverseAutoregressiveFlow": Published(-80.79, _SYLVESTER_SOURCE, confirmed=False),
    # the paper's orthogonal variant (O-SNF); ours uses Householder reflections (H-SNF)
    "SylvesterFlow": Published(-80.22, _SYLVESTER_SOURCE, confirmed=False),
}
