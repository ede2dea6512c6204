"""Optimizers, schedules and networks of the papers' authors, as a ``--plugin``.

    pyro-vae fit --plugin experiments/paper_optimizers.py \\
        --fit.optimizer paper_optimizers.AdamFromOne …
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pyro_vae.core.components import Heads, Shape
from pyro_vae.networks import MLP
from pyro_vae.networks.base import Init, OutputBias, weight_matrices

__all__ = ["AdamFromOne", "AdamNormGrad", "IdenticalStartMLP", "RoundedSteps"]


class AdamFromOne(Adam):
    """Adam with second moments initialised at 1 instead of 0, so that the first steps are small.

    Algorithm and defaults are those of the IWAE authors' code, which adds ε to the root of the
    second moment before the bias correction. Here, as in torch, it is added after; the difference
    vanishes after some thousand steps.

    Arguments:
        params: the parameters to optimize.
        lr: the step size.
        betas: the decay rates of the first and second moments.
        eps: ε.
        fused: whether to use torch's fused implementation.

    References:
        Importance Weighted Autoencoders (Burda et al., 2015), whose code is at
        https://github.com/yburda/iwae
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.99, 0.999),
        eps: float = 1e-4,
        fused: bool | None = None,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not self.state[p]:
                    on_device = group["capturable"] or group["fused"]
                    self.state[p] |= {
                        "step": torch.zeros((), device=p.device if on_device else "cpu"),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.ones_like(p),
                    }
        return super().step(closure)


class AdamNormGrad(Adam):
    """Adam with the gradient of each parameter divided by its norm.

    Arguments:
        params: the parameters to optimize.
        lr: the step size.
        fused: whether to use torch's fused implementation.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), whose code is at
        https://github.com/jmtomczak/vae_vampprior
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, fused: bool | None = None
    ) -> None:
        super().__init__(params, lr=lr, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = p.grad / (p.grad.norm() + 1e-7)
        return super().step(closure)


class RoundedSteps(LambdaLR):
    """Multiply the step size by ``factors[i]`` for 3^i epochs, i = 0 … 7, and then by the last.

    The factors are 10^(−i/7), rounded as in the IWAE authors' code.

    Arguments:
        optimizer: the optimizer.
    """

    factors = tuple(round(10 ** (1 - i / 7), 1) / 10 for i in range(8))

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, self._factor)

    @classmethod
    def _factor(cls, epoch: int) -> float:
        ends = ((3 ** (i + 1) - 1) // 2 for i in range(8))
        return cls.factors[min(sum(epoch >= end for end in ends), 7)]


class IdenticalStartMLP(MLP):
    """MLP with initial weights that are identical for all matrices of one shape.

    The IWAE authors' code draws every matrix with a new generator of the same seed. In particular,
    the heads for the mean and for log σ start identical. Here, the seed is that of the run.

    Arguments:
        hidden: the widths of the hidden layers.
        init: ``glorot``.
        output_bias: as for :class:`~pyro_vae.networks.MLP`.

    Raises:
        ValueError: for another ``init``.

    References:
        ``Linear.random`` in https://github.com/yburda/iwae/blob/master/nnet.py
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Shape = (200, 200),
        init: Init = "glorot",
        output_bias: OutputBias = None,
    ) -> None:
        if init != "glorot":
            raise ValueError(f"expected init to be 'glorot', as in the authors' code; got {init!r}")
        super().__init__(in_shape, out_shape, hidden, init=init, output_bias=output_bias)
        with torch.no_grad():
            for matrix in weight_matrices(self.layers, Heads.sizes_of(out_shape)):
                outputs, inputs = matrix.shape
                bound = np.sqrt(6 / (inputs + outputs))
                random = np.random.RandomState(torch.initial_seed() % 2**32)
                matrix.copy_(torch.from_numpy(random.uniform(-bound, bound, (inputs, outputs)).T))
