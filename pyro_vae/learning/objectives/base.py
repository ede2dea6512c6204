"""What every objective is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from pyro.infer import ELBO as PyroELBO
from torch import Tensor

__all__ = ["Moment", "Objective"]


@dataclass(frozen=True)
class Moment:
    """Where learning is, before a step.

    Attributes:
        epoch: passes over the data so far, with their fraction.
        num_data: the number of training data, if it is known.
        index: which of them are in the minibatch, ``(batch,)``, if it is known.
        update: the number of updates already made with this minibatch.
    """

    epoch: float = 0.0
    num_data: int | None = None
    index: Tensor | None = None
    update: int = 0


class Objective(PyroELBO):
    """The base of all objectives: a Pyro ``ELBO``, so ``SVI(…, loss=objective)`` takes it.

    A new objective defines :meth:`loss` and :meth:`differentiable_loss`. What they return is
    the bound itself, also where the gradient is that of something else.
    """

    #: How many updates :func:`~pyro_vae.fit` makes with each minibatch.
    updates: int = 1

    #: What the next step is of, for what changes with it.
    _moment: Moment = Moment()

    def at(self, moment: Moment) -> None:
        """Told by :func:`~pyro_vae.fit` before each step what it is of."""
        self._moment = moment

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted :func:`~pyro_vae.fit` needs to go on: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""

    @abstractmethod
    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Minus the objective, summed over the data, in nats."""

    @abstractmethod
    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """:meth:`loss` as a tensor whose gradient is the estimator's."""

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """:meth:`loss`, after adding its gradient to every parameter's ``grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError(f"{type(self).__name__} runs the programs by itself")
