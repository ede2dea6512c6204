"""Variational autoencoders as Pyro programs, trained by SVI, evaluated by importance sampling.

    import pyro_vae as pv

    data = pv.data.load("mnist5k", binarize="dynamic")
    vae = pv.VAE(data.event_shape, latent_dim=20)
    pv.fit(vae, data.train)
    print(pv.evaluate(vae, data.test))

``help(pv.fit)`` describes one name, with arguments, shapes, units and errors.

Programs: a Pyro ``model`` and its ``guide``
    Pair                any model and guide, with the name of their plate over the data
    VAE                 z ~ p(z), x ~ p(x|z), and the encoder q(z|x)
    HierarchicalVAE     several layers of latents
    ConditionalVAE      p(x|c), given a class or a tensor c
    SemiSupervisedVAE   p(x, y), trained on a few known classes y
    BayesianVAE         a posterior over the decoder's weights

Training
    fit                 train a program by SVI; returns its History
    initialize          initialise from the data, for a training loop of your own
    objectives          ELBO, IWAE, and others

Evaluation: of these programs, or of any pair (model, guide)
    evaluate            the ELBO, L_k, log p̂ and k̂, as Bounds; reliable=True improves log p̂
    log_weights         log p(x, z) − log q(z|x) for each sample and example
    ais, bdmc           annealed importance sampling (settings: Annealing), and its check
    Annealing, Laplace  estimators of log p(x), for the argument estimators of evaluate
    gaps                inference gaps, as Gaps
    latents             KL per latent and ELBO surgery, as Latents
    active_units        latents in use, as ActiveUnits
    rate_distortion     rate-distortion curve, as RateDistortion
    calibration         calibration of q(z|x) and p(x), as Calibration

Run folders of ``pyro-vae fit``
    load                open one as a Run
    compare             compare runs on the same test examples
    export              write a trained VAE as functions that need only torch

Components and data
    priors, likelihoods, posteriors, networks
                        classes to choose from, and base classes for your own
    models              the programs and their base class
    data                load, Dataset, Split: data sets and how they are binarised

Further packages
    queries             sample, reconstruct, interpolate, impute, encode, …
    interop             programs from models of other code: from_modules, from_pythae, …
    learning            compiled SVI, optimizers, schedules
    trackers            record a training: plain files, TensorBoard, W&B, MLflow, Trackio
    evaluation          all evaluations
    distributed         training with several processes

Types of arguments
    Shape, NetworkFactory, Space, Labels
"""

# Every export is an import with `as`, the convention of typed packages without `__all__`: with
# `__all__`, help() would print the whole documentation of every class, thousands of lines.
import importlib
from typing import TYPE_CHECKING, Any

from . import data as data
from . import learning as learning
from . import likelihoods as likelihoods
from . import models as models
from . import networks as networks
from . import posteriors as posteriors
from . import priors as priors
from .core import distributed as distributed
from .core.components import Labels as Labels
from .core.components import NetworkFactory as NetworkFactory
from .core.components import Shape as Shape
from .core.components import Space as Space
from .learning import History as History
from .learning import fit as fit
from .learning import initialize as initialize
from .learning import objectives as objectives
from .learning import trackers as trackers
from .models import VAE as VAE
from .models import BayesianVAE as BayesianVAE
from .models import ConditionalVAE as ConditionalVAE
from .models import HierarchicalVAE as HierarchicalVAE
from .models import SemiSupervisedVAE as SemiSupervisedVAE
from .programs.base import Pair as Pair
from .programs.importance_weights import log_weights as log_weights

if TYPE_CHECKING:
    from . import evaluation as evaluation
    from . import interop as interop
    from . import queries as queries
    from .evaluation import ActiveUnits as ActiveUnits
    from .evaluation import Annealing as Annealing
    from .evaluation import Bounds as Bounds
    from .evaluation import Calibration as Calibration
    from .evaluation import Gaps as Gaps
    from .evaluation import Laplace as Laplace
    from .evaluation import Latents as Latents
    from .evaluation import RateDistortion as RateDistortion
    from .evaluation import active_units as active_units
    from .evaluation import ais as ais
    from .evaluation import bdmc as bdmc
    from .evaluation import calibration as calibration
    from .evaluation import evaluate as evaluate
    from .evaluation import gaps as gaps
    from .evaluation import latents as latents
    from .evaluation import rate_distortion as rate_distortion
    from .runs import Run as Run
    from .runs import compare as compare
    from .runs import export as export
    from .runs import load as load

    __version__: str

#: Names that training does not need, with the module to import at their first use (PEP 562).
_LAZY = {
    **dict.fromkeys(("evaluation", "interop", "queries"), ""),
    **dict.fromkeys(
        (
            *("ActiveUnits", "Annealing", "Bounds", "Calibration", "Gaps", "Laplace", "Latents"),
            *("RateDistortion", "active_units", "ais", "bdmc", "calibration", "evaluate", "gaps"),
            *("latents", "rate_distortion"),
        ),
        ".evaluation",
    ),
    **dict.fromkeys(("Run", "compare", "export", "load"), ".runs"),
}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        # `import *` and help() look for it first; without it they take the names that are loaded
        for lazy in _LAZY:
            __getattr__(lazy)
    elif name == "__version__":
        from importlib.metadata import version

        globals()[name] = version("pyro-vae")
        return globals()[name]
    elif name in _LAZY:
        module = _LAZY[name]
        value = importlib.import_module(module or f".{name}", __name__)
        globals()[name] = getattr(value, name) if module else value
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})
