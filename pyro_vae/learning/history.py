"""What a fit tells of its epochs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["History"]


@dataclass
class History:
    """What happened in each epoch.

    ``history["elbo"]`` is a list over epochs. The columns are ``epoch``, ``step`` (updates so
    far), ``elbo`` (the objective, averaged over the epoch's minibatches), ``valid_elbo`` (the
    ELBO of the validation data after the epoch, if there are any), both in nats per datum,
    ``lr`` and ``seconds``; ``compile_seconds`` of these where steps were compiled.

    Attributes:
        epochs: one mapping for each epoch.
        best_epoch: the epoch whose weights were kept, if training could stop early.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.epochs)

    def __getitem__(self, column: str) -> list[Any]:
        return [epoch[column] for epoch in self.epochs]
