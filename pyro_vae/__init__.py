"""Variational autoencoders as Pyro programs, trained by SVI, evaluated by importance sampling."""

from typing import TYPE_CHECKING, Any

from . import (
    data,
    evaluation,
    learning,
    likelihoods,
    models,
    networks,
    posteriors,
    priors,
    queries,
)
from .core import distributed
from .core.components import Labels, NetworkFactory, Shape, Space
from .evaluation import (
    ActiveUnits,
    Annealing,
    Bounds,
    Gaps,
    Latents,
    RateDistortion,
    active_units,
    ais,
    bdmc,
    evaluate,
    gaps,
    latents,
    rate_distortion,
)
from .learning import History, fit, initialize, objectives
from .models import VAE, BayesianVAE, ConditionalVAE, HierarchicalVAE, SemiSupervisedVAE
from .programs.importance_weights import log_weights

if TYPE_CHECKING:
    from .runs import Run, compare, load

__all__ = [
    "VAE",
    "ActiveUnits",
    "Annealing",
    "BayesianVAE",
    "Bounds",
    "ConditionalVAE",
    "Gaps",
    "HierarchicalVAE",
    "History",
    "Labels",
    "Latents",
    "NetworkFactory",
    "RateDistortion",
    "Run",
    "SemiSupervisedVAE",
    "Shape",
    "Space",
    "active_units",
    "ais",
    "bdmc",
    "compare",
    "data",
    "distributed",
    "evaluate",
    "evaluation",
    "fit",
    "gaps",
    "initialize",
    "latents",
    "learning",
    "likelihoods",
    "load",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "posteriors",
    "priors",
    "queries",
    "rate_distortion",
]

__version__ = "0.2.0"

#: Imported on first use: parsers and run folders take time that `import pyro_vae` need not.
_LAZY = ("Run", "compare", "load")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from . import runs

        return getattr(runs, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
