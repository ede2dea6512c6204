"""Training history: one record per epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["History"]


@dataclass
class History:
    """Metrics of each epoch.

    ``history["elbo"]`` is a list over epochs. The columns are ``epoch``, ``step`` (total updates),
    ``elbo`` (the objective averaged over the epoch's minibatches) and ``valid_elbo`` (the ELBO of
    the validation data after the epoch, if any), both in nats per datum, ``lr`` and ``seconds``,
    of which ``compile_seconds`` were spent on compilation, if any.

    Attributes:
        epochs: one mapping per epoch.
        best_epoch: the epoch whose weights were kept, with early stopping.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, column: str) -> list[Any]:
        return [epoch[column] for epoch in self.epochs]
