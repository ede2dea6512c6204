"""Metrics of a training run, by epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.figures import MUTED, get_axes, use_integer_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["History", "plot_learning_curves"]

#: Columns with nats per datum, and their labels.
_LABELS = {"elbo": "objective, training", "valid_elbo": "ELBO, validation"}


@dataclass(repr=False)
class History:
    """Metrics of each epoch.

    ``history["elbo"]`` is a list over epochs. The columns are ``epoch``, ``step`` (total updates),
    ``elbo`` (the objective averaged over the epoch's minibatches) and ``valid_elbo`` (the ELBO of
    the validation data after the epoch, if any), both in nats per datum, ``lr`` and ``seconds``,
    of which ``compile_seconds`` were spent on compilation, if any. A ``poutine.scale`` weighs the
    gradient and is not part of ``elbo``, except with Pyro's own objectives, whose loss has it.

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

    def __repr__(self) -> str:
        lines = [self._head]
        for name in self._columns:
            values = "  ".join(f"{label} {value:.3f}" for label, value in self._milestones(name))
            lines.append(f"{_LABELS[name]:20} {values}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = []
        for name in self._columns:
            cells = self._milestones(name)
            if not rows:
                heads = "".join(f"<th>{escape(label)}</th>" for label, _ in cells)
                rows.append(f"<tr><th></th>{heads}</tr>")
            numbers = "".join(f"<td>{value:.3f}</td>" for _, value in cells)
            rows.append(f"<tr><th>{_LABELS[name]}</th>{numbers}</tr>")
        return f"<div><p>{escape(self._head)}</p><table>{''.join(rows)}</table></div>"

    @property
    def _head(self) -> str:
        if not self.epochs:
            return "History: no epochs yet"
        kept = "" if self.best_epoch is None else f" (weights of epoch {self.best_epoch})"
        seconds = sum(epoch.get("seconds", 0.0) for epoch in self.epochs)
        return f"History: {len(self)} epochs{kept}, {seconds:.1f} s; nats per datum"

    @property
    def _columns(self) -> list[str]:
        return [name for name in _LABELS if self.epochs and name in self.epochs[-1]]

    def _milestones(self, name: str) -> list[tuple[str, float]]:
        """Return the values of the first, the kept and the last epoch."""
        numbers = dict.fromkeys(
            n for n in (1, self.best_epoch, len(self)) if n is not None and n <= len(self)
        )
        known = [(f"epoch {n}", self.epochs[n - 1].get(name, np.nan)) for n in numbers]
        return [(label, float(value)) for label, value in known]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the training objective and the validation ELBO by epoch.

        Arguments:
            ax: Matplotlib axes to draw on; those of a new figure by default.

        Raises:
            ValueError: if there are no epochs.
        """
        return plot_learning_curves(self, ax)


def plot_learning_curves(history: History, ax: Axes | None = None, label: str = "") -> Axes:
    """Plot the training objective and the validation ELBO by epoch.

    Arguments:
        history: the metrics.
        ax: the axes; those of a new figure by default.
        label: the name of the history, to compare several on the same axes. The validation ELBO is
            then dashed, in the same colour.

    Raises:
        ValueError: if there are no epochs.
    """
    if not history.epochs:
        raise ValueError("expected a history with epochs to plot; got none: train first")
    axes = get_axes(ax)
    others = axes.get_ylim() if axes.has_data() else None
    (line,) = axes.plot(history["epoch"], history["elbo"], label=label or _LABELS["elbo"])
    if "valid_elbo" in history.epochs[0]:
        style: dict[str, Any] = {"label": _LABELS["valid_elbo"]}
        if label:
            style = {"ls": "--", "color": line.get_color()}
        axes.plot(history["epoch"], history["valid_elbo"], **style)
    if history.best_epoch is not None and not label:
        name = f"weights of epoch {history.best_epoch}"
        axes.axvline(history.best_epoch, color=MUTED, ls=":", lw=1, label=name)
    # the first epochs are far lower and would flatten the rest of the curve
    settled = np.sort(history["elbo"])[len(history) // 10 :]
    top = max(max(history["elbo"]), max(history.epochs[-1].get("valid_elbo", -np.inf), settled[-1]))
    margin = 0.1 * (top - settled[0]) + 1e-3
    low, high = settled[0] - margin, top + margin
    if others is not None:
        low, high = min(low, others[0]), max(high, others[1])
    axes.set_ylim(low, high)
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats per datum")
    use_integer_ticks(axes)
    # above the axes, where no curve is
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
    axes.legend(frameon=False, fontsize=8, borderaxespad=0.2, **place)
    return axes
