"""Reliable estimates of log p(x): each example climbs a ladder of proposals as far as it needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from ..core.links import see
from .annealing.sampler import Annealing, ais
from .bounds import Bounds
from .estimators import EstimationTask, Estimator, SamplingSettings
from .importance.laplace_proposals import Laplace, laplace, predict_tail_index
from .importance.psis import khat_threshold
from .resumable import CheckpointError
from .table_parts import TablePart, register

__all__ = ["Ladder"]

#: Names of the proposals by code.
_PROPOSALS = ("guide", "Laplace", "adapted", "AIS")
_GUIDE, _LAPLACE, _ADAPTED, _AIS = range(len(_PROPOSALS))
#: Factors on the number of samples where k̂ or the standard error is not good, and the part of the
#: largest error that they aim at.
_MORE_SAMPLES, _MARGIN = (4, 16), 0.95
#: Predicted tail index of the weights of q from which q is too narrow to be used: their variance
#: is infinite, and k̂ is low where no sample of q has reached the tail.
_MAX_TAIL_INDEX = 0.5
#: Tail index, as fitted to the weights, from which it is compared with the predicted one, and the
#: largest difference. A tail that is heavier than that of normals may get heavier beyond the
#: samples, as that of a funnel does, and its errors are then too small.
_MIN_COMPARED, _MAX_UNEXPLAINED = 0.2, 0.15
#: Columns of log p̂ that are replaced; the guide's are kept with the prefix ``guide_``.
_REPLACED = (
    *("log_evidence", "log_evidence_variance", "log_evidence_bias"),
    *("khat", "khat_pooled", "ess", "num_samples"),
)
_DEFAULT_LAPLACE = Laplace()
#: Chains of AIS for the few examples that need it.
_DEFAULT_ANNEALING = Annealing(num_chains=16, num_temperatures=400, num_steps=5)


@dataclass(frozen=True)
class Ladder(Estimator):
    """Reliable log p̂: the cheapest proposal for each example whose estimate is good.

    ``evaluate(…, reliable=True)`` adds it with default settings. The rungs are

    1. the guide: the samples of q that the ELBO and the L_k use;
    2. a Laplace approximation of p(z|x), adapted to its samples where necessary, see
       :func:`~pyro_vae.evaluation.laplace`; where its estimate is not good, it is repeated with
       more samples;
    3. annealed importance sampling, see :func:`~pyro_vae.evaluation.ais`.

    An example climbs while k̂ is bad or the standard error of log p̂ is above ``max_error``. Every
    rung draws fresh samples. The row ``log_evidence`` is then the estimate of the last rung, and
    the column ``proposal`` its number. The ELBO and the L_k stay those of the guide.

    A rung that does not support the program is left out, and the table states the reason.

    Attributes:
        laplace: the settings of the second rung.
        annealing: the settings of the third rung; ``None`` leaves it out.
        max_error: the largest standard error of log p̂ of an example, in nats.

    Raises:
        ValueError: if ``max_error`` is not positive.
    """

    order: ClassVar[int] = 1

    laplace: Laplace = _DEFAULT_LAPLACE
    annealing: Annealing | None = _DEFAULT_ANNEALING
    max_error: float = 0.3

    def __post_init__(self) -> None:
        if not self.max_error > 0:
            raise ValueError(f"expected max_error > 0, in nats; got {self.max_error}")

    def configure(self, settings: SamplingSettings) -> SamplingSettings:
        if settings.precision != "float32":
            raise ValueError(
                f"expected precision float32 with Ladder (reliable=True); got "
                f"{settings.precision}, but its proposals other than q use float32, and k̂ decides "
                f"on them: drop one of the two "
                f"({see('docs/explanation/errors.md#bfloat16-networks')})"
            )
        return settings

    def estimate(self, task: EstimationTask, bounds: Bounds) -> Bounds:
        climb = _Climb(self, task, bounds)
        climb.reject_doubtful_guides()
        climb.sample_laplace()
        climb.anneal()
        return climb.result()


class _Climb:
    """State of the climb of all examples, which starts with the estimates of the guide.

    Attributes:
        columns: those of log p̂ so far, ``(N,)`` each.
        good: whether an example has arrived.
        proposal: the codes of the proposals.
        reasons: why a rung was left out, by rung.
        settings, chains: settings and diagnostics of AIS.
    """

    def __init__(self, ladder: Ladder, task: EstimationTask, bounds: Bounds) -> None:
        self.ladder, self.task, self.bounds = ladder, task, bounds
        data = bounds.per_datum | {"num_samples": bounds.sample_counts}
        self.columns = {name: data[name].copy() for name in _REPLACED}
        self.proposal = np.full(len(bounds), _GUIDE, dtype=np.int8)
        self.good = self._has_small_error()
        self.good[bounds.unreliable] = False
        self.reasons: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self.chains: dict[str, np.ndarray] = {}

    def reject_doubtful_guides(self) -> None:
        """Let examples climb whose weights may have a heavier tail than k̂ shows."""
        rows = np.flatnonzero(self.good)
        if not len(rows):
            return
        with self._note_reason("Laplace"):
            inputs = self.task.select(rows).inputs
            index = predict_tail_index(inputs, self.ladder.laplace, self.task.seed).numpy()
            fitted = self.columns["khat_pooled"][rows]
            # NaN if q cannot be scored: k̂ alone decides
            is_unexplained = (fitted > _MIN_COMPARED) & (fitted - index > _MAX_UNEXPLAINED)
            # an amortised guide errs alike on similar examples: the low k̂ of a few is luck
            is_unexplained |= is_unexplained.mean() > 0.5
            self.good[rows] = ~((index >= _MAX_TAIL_INDEX) | is_unexplained)

    def sample_laplace(self) -> None:
        """Sample around the modes of the posteriors of the examples that are not good."""
        settings, rows = self.ladder.laplace, np.flatnonzero(~self.good)
        bounds = self._run("Laplace", rows, settings)
        if bounds is None:
            return
        self._take_laplace(bounds, rows)
        # where k̂ is good, the standard error gives the necessary number of samples;
        # where it is bad, more samples may give a better proposal
        variance, is_tail_good = self.columns["log_evidence_variance"], self._has_good_tail()
        required = variance / (_MARGIN * self.ladder.max_error) ** 2
        required = np.where(is_tail_good, required, _MORE_SAMPLES[0])
        factors = np.array(_MORE_SAMPLES)[np.searchsorted(_MORE_SAMPLES[:-1], required)]
        waiting = ~self.good & (required <= _MORE_SAMPLES[-1])
        for factor in _MORE_SAMPLES:
            rows = np.flatnonzero(waiting & (factors == factor))
            more = replace(settings, num_samples=factor * settings.num_samples)
            bounds = self._run("Laplace", rows, more, suffix=str(factor))
            if bounds is not None:
                self._take_laplace(bounds, rows)

    def anneal(self) -> None:
        """Run AIS for the examples that are not good."""
        settings, rows = self.ladder.annealing, np.flatnonzero(~self.good)
        if settings is None:
            return
        bounds = self._run("AIS", rows, settings)
        if bounds is None:
            return
        data = bounds.per_datum
        missing = np.full(len(self.good), math.nan)
        values = {
            "log_evidence": data["ais"],
            "log_evidence_variance": data["ais_variance"],
            "log_evidence_bias": data["ais_bias"],
            "khat": missing,
            "khat_pooled": missing,
            "ess": missing,
        }
        num_chains = bounds.settings["annealing"]["num_chains"]
        self._take(rows, values, np.full(len(rows), _AIS), num_chains)
        names = [n for n in data if n == "acceptance" or n.startswith("ais")]
        self.chains = {name: data[name] for name in names}
        self.settings["annealing"] = bounds.settings["annealing"]

    def result(self) -> Bounds:
        """Return the bounds with the estimates of the ladder."""
        old, new = self.bounds.per_datum, self.columns
        kept = {f"guide_{name}": old[name] for name in _REPLACED if name in old}
        # from other samples than the ELBO, except on the first rung
        independent = new["log_evidence_variance"] + old["elbo_variance"]
        gap = np.where(self.proposal == _GUIDE, old["gap_variance"], independent)
        columns = {**new, "gap_variance": gap, "gap_bias": new["log_evidence_bias"]}
        columns["proposal"] = self.proposal
        settings = {
            "ladder": asdict(self.ladder),
            "proposals": list(_PROPOSALS),
            **({"left_out": self.reasons} if self.reasons else {}),
            **self.settings,
        }
        return replace(
            self.bounds,
            per_datum={**self.chains, **old, **kept, **columns},
            settings={**settings, **self.bounds.settings},
        )

    def _run(
        self, rung: str, rows: np.ndarray, settings: Laplace | Annealing, suffix: str = ""
    ) -> Bounds | None:
        """Return the bounds of a rung for the given rows, or ``None`` if it gives none."""
        if not len(rows) or rung in self.reasons:
            return None
        column = "laplace" if rung == "Laplace" else "ais"
        if not suffix and column in self.bounds.per_datum:
            return self.bounds  # an estimator before this one has computed all examples
        name = f"ladder_{column}{suffix}"
        task = self.task
        if suffix:  # fresh samples, as those before have selected the examples
            entropy = np.random.SeedSequence([task.seed, int(suffix)])
            task = replace(task, seed=int(entropy.generate_state(1)[0]))
        with self._note_reason(rung):
            if isinstance(settings, Laplace):
                return task.run_on(rows, laplace, name, settings=settings)
            return task.run_on(rows, ais, name, annealing=settings)
        return None

    @contextmanager
    def _note_reason(self, rung: str) -> Iterator[None]:
        """Note why a rung does not support the program instead of raising."""
        try:
            yield
        except (CheckpointError, torch.OutOfMemoryError):
            raise
        except _UNSUPPORTED as error:
            self.reasons[rung] = _shorten(error)

    def _take_laplace(self, bounds: Bounds, rows: np.ndarray) -> None:
        data = bounds.per_datum
        values = {
            "log_evidence": data["laplace"],
            "log_evidence_variance": data["laplace_variance"],
            "log_evidence_bias": data["laplace_bias"],
            "khat": data["laplace_khat"],
            "khat_pooled": data["laplace_khat_pooled"],
            "ess": data["laplace_ess"],
        }
        proposal = np.where(data["laplace_round"][rows] > 0, _ADAPTED, _LAPLACE)
        self._take(rows, values, proposal, bounds.settings["laplace"]["num_samples"])

    def _take(
        self,
        rows: np.ndarray,
        values: dict[str, np.ndarray],
        proposal: np.ndarray,
        num_samples: int,
    ) -> None:
        for name, column in values.items():
            self.columns[name][rows] = column[rows]
        self.columns["num_samples"][rows] = num_samples
        self.proposal[rows] = proposal
        self.good[rows] = (self._has_small_error() & self._has_good_tail())[rows]

    def _has_small_error(self) -> np.ndarray:
        return np.sqrt(self.columns["log_evidence_variance"]) <= self.ladder.max_error

    def _has_good_tail(self) -> np.ndarray:
        khat, counts = self.columns["khat_pooled"], self.columns["num_samples"]
        thresholds = np.array([khat_threshold(int(count)) for count in counts])
        return (khat < thresholds) | (self.proposal == _AIS)


#: Errors of programs that a rung does not support: refused, or not differentiable twice.
_UNSUPPORTED = (ValueError, RuntimeError)


def _shorten(error: Exception) -> str:
    """Return an error without the remedy."""
    return str(error).partition(": ")[0] or type(error).__name__


def _describe(bounds: Bounds) -> str | None:
    counts = bounds.proposals
    if not counts:
        return None
    used = [f"{name} {count}" for name, count in counts.items() if count]
    lines = [f"log p̂ from: {', '.join(used)} of {len(bounds)} examples"]
    reasons = bounds.settings.get("left_out", {})
    if reasons:
        stops = {("AIS",): "stops at Laplace", ("Laplace",): "leaves out Laplace"}
        effect = stops.get(tuple(reasons), "stops at the guide")
        lines.append(f"the ladder {effect}: {'; '.join(dict.fromkeys(reasons.values()))}")
    return "\n".join(lines)


register(
    TablePart(
        order=2,
        describe=_describe,
        summarize=lambda bounds: {"proposals": bounds.proposals} if bounds.proposals else {},
    )
)
