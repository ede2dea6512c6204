"""Bounds on log p(x), estimates of it, and diagnostics of their reliability."""

from .annealing.bidirectional import BDMC, bdmc
from .annealing.rate_distortion_curve import RATE_DISTORTION, RateDistortion, rate_distortion
from .annealing.sampler import Annealing, ais
from .bounds import Bounds
from .calibration_checks.estimator import CALIBRATION, calibration
from .calibration_checks.result import Calibration
from .escalation import Ladder
from .estimators import Estimator
from .evaluator import BOUNDS, evaluate
from .importance.adaptive import AdaptiveSamples
from .importance.defensive import Defensive
from .importance.laplace_proposals import Laplace, laplace
from .importance.reciprocal_sampling import reciprocal
from .importance.sampling import Corrected
from .inference_gaps.estimator import GAPS, Gaps, gaps
from .latent_diagnostics.elbo_surgery import Surgery, surgery
from .latent_diagnostics.kl import Divergences, divergences
from .latent_diagnostics.summary import LATENTS, ActiveUnits, Latents, active_units, latents
from .slices import Evaluation

__all__ = [
    "EVALUATIONS",
    "ActiveUnits",
    "AdaptiveSamples",
    "Annealing",
    "Bounds",
    "Calibration",
    "Corrected",
    "Defensive",
    "Divergences",
    "Estimator",
    "Evaluation",
    "Gaps",
    "Ladder",
    "Laplace",
    "Latents",
    "RateDistortion",
    "Surgery",
    "active_units",
    "ais",
    "bdmc",
    "calibration",
    "divergences",
    "evaluate",
    "gaps",
    "laplace",
    "latents",
    "rate_distortion",
    "reciprocal",
    "surgery",
]

#: The evaluations of a run by name, in the order of the command line and of the report.
EVALUATIONS: dict[str, Evaluation] = {
    evaluation.name: evaluation
    for evaluation in (BOUNDS, BDMC, GAPS, LATENTS, RATE_DISTORTION, CALIBRATION)
}
