"""What every objective is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pyro.infer import ELBO as PyroELBO
from torch import Tensor

__all__ = ["Objective"]


class Objective(PyroELBO):
    """The base of all objectives: a Pyro ``ELBO``, so ``SVI(…, loss=objective)`` takes it.

    A new objective defines :meth:`loss` and :meth:`differentiable_loss`. What they return is
    the bound itself, also where the gradient is that of something else.
    """

    #: How many passes over the data have been made, for what changes with them.
    _epoch: float = 0.0

    def at(self, epoch: float) -> None:
        """Told by :func:`~pyro_vae.fit` before each step how many epochs have passed."""
        self._epoch = epoch

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
