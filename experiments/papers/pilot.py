"""Pilots: the step size of each row and seed is chosen by short runs of that very model.

Auto-Encoding Variational Bayes (Kingma & Welling, 2013), section 5: Adagrad's step size is one of
0.01, 0.02 and 0.1, chosen by the performance on the training set in the first few iterations.
https://arxiv.org/abs/1312.6114
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro_vae as pv
from pyro_vae.config import experiment
from pyro_vae.core import files
from pyro_vae.learning.diagnostics import NonFiniteLossError

from ..cells import Cell, lock, read_kept
from ..tables import HERE, Table, slug

__all__ = ["Pilot", "PilotCell", "PilotTable"]


@dataclass(frozen=True)
class Pilot:
    """How the step size of a row is chosen.

    Attributes:
        step_sizes: the candidates. The first one is used until the pilot has run.
        examples: number of training examples seen by each run, the first ones or whole epochs, and
            at most that of the row.
        estimate: the estimate that is compared, ``elbo`` or ``log_evidence``.
        num_samples: number of samples for each example.
        num_data: number of training examples to evaluate (the first ones).
    """

    step_sizes: Sequence[float] = (0.01, 0.02, 0.1)
    examples: int = 20_000
    estimate: str = "elbo"
    num_samples: int = 10
    num_data: int = 1000


@dataclass(frozen=True)
class PilotTable(Table):
    """A table whose step sizes are chosen by pilots.

    Attributes:
        pilot: how they are chosen.
    """

    pilot: Pilot = Pilot()


class PilotCell(Cell):
    """A row and seed with its own pilot. Tables with the same arguments share the pilot."""

    table: PilotTable

    @property
    def step_size(self) -> float:
        """The step size that the pilot has chosen, or the first candidate before the pilot."""
        if not self.pilot_file.is_file():
            return self.table.pilot.step_sizes[0]
        return self.read_pilot()["step_size"]

    @property
    def pilot_file(self) -> Path:
        """File with the results of the pilot, which depend on the arguments and candidates."""
        content = json.dumps([super()._make_args(HERE), repr(self.table.pilot)])
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return self.runs / "pilots" / f"{slug(self.row)}-{self.seed}-{digest}.json"

    @property
    def commands(self) -> dict[str, str]:
        commands = super().commands
        return {**commands, "fit": f"{commands['fit']} {' '.join(self._step_size_args)}"}

    def execute(self, device: str) -> None:
        with lock(self.pilot_file, wait=math.inf):
            if not self.pilot_file.is_file():
                files.atomic_write_text(
                    self.pilot_file, json.dumps(self.run_pilot(device), indent=1) + "\n"
                )
        super().execute(device)

    def run_pilot(self, device: str) -> dict[str, Any]:
        """Train with each step size, and return the training results and the best step size.

        The result is ``None`` for a step size with which training diverges.

        Raises:
            ValueError: if training diverges with all of them.
        """
        pilot, values = self.table.pilot, {}
        for step_size in pilot.step_sizes:
            values[step_size] = self._try_step_size(step_size, device)
        finite = {s: v["value"] for s, v in values.items() if v is not None}
        if not finite:
            raise ValueError(
                f"expected a step size with which training does not diverge, among "
                f"{', '.join(map(str, pilot.step_sizes))}; got none: add a smaller one to the pilot"
            )
        return {
            "step_size": max(finite, key=finite.__getitem__),
            "estimate": pilot.estimate,
            "num_samples": pilot.num_samples,
            "num_data": pilot.num_data,
            "examples": self._pilot_epochs * min(pilot.examples, self.expected.settings.data.train),
            "training": {str(step_size): value for step_size, value in values.items()},
        }

    def read_pilot(self) -> dict[str, Any]:
        """Return the results of the pilot.

        Raises:
            ValueError: if the file is damaged.
        """
        return read_kept(self.pilot_file, "repeat the pilot")

    def extra_record(self) -> dict[str, Any]:
        return {"pilot": self.read_pilot(), **super().extra_record()}

    @property
    def _step_size_args(self) -> list[str]:
        return ["--fit.optimizer.lr", str(self.step_size)]

    def _make_args(self, here: Path) -> list[str]:
        return [*super()._make_args(here), *self._step_size_args]

    @property
    def _pilot_epochs(self) -> int:
        settings = self.expected.settings
        epochs = round(self.table.pilot.examples / settings.data.train)
        return min(max(epochs, 1), settings.fit.epochs)

    def _try_step_size(self, step_size: float, device: str) -> dict[str, float] | None:
        pilot = self.table.pilot
        lr = ["--fit.optimizer.lr", str(step_size)]
        trial = experiment.parse([*super()._make_args(HERE), *lr, "--fit.device", device])
        data = trial.load_data()
        model = trial.build_model(data)
        try:
            arguments = {**trial.fit_arguments, "epochs": self._pilot_epochs}
            pv.fit(model, data.train.head(pilot.examples), **arguments)
        except NonFiniteLossError:
            return None
        part = data.train.head(pilot.num_data)
        row = pv.evaluate(model, part, num_samples=pilot.num_samples).estimates[pilot.estimate]
        return {"value": row.value, "se": row.se_data} if math.isfinite(row.value) else None
