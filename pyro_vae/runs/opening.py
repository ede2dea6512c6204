"""Opening of a trained run: its experiment, its program, and its data when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from ..config.experiment import Experiment, flatten_settings, load_experiment
from ..config.plugins import PluginError
from ..core.validation import did_you_mean
from ..data import Column, Dataset, Split
from ..data.scaling import Scale
from ..learning.training import resolve_device
from ..models import Autoencoder
from .examples import (
    DATA_OPTIONS,
    RunData,
    absolute_changes,
    find_files,
    load_run_data,
    make_label_examples,
    recorded_columns,
    recorded_scale,
    recorded_shapes,
)
from .files import RunError, RunFiles
from .provenance import labels_checksum

__all__ = ["MUTABLE_SETTINGS", "TrainedRun"]

_log = logging.getLogger("pyro_vae")

#: Settings that may change when a run is resumed: they do not affect finished steps, and moved
#: data or weights are verified by their checksums.
MUTABLE_SETTINGS = {
    "fit.epochs",
    "fit.device",
    "fit.checkpoint_every",
    "data.path",
    "data.root",
    "plugin",
    "start_from",
}


class TrainedRun(RunFiles):
    """The experiment, the program and the data of a trained run.

    A trained run can be opened without its data. They are read when they are needed.

    Arguments:
        folder: the folder.
        plugin: the plugins to import when the run is opened, see :class:`~.files.RunFiles`.
        data: options of :func:`~pyro_vae.data.load` (``path``, ``root``, ``key``, …) that replace
            those of a trained run, to name the place of its data or new data. New data are all test
            data, in the order of the file.

    Raises:
        ValueError: if ``data`` has other options.
    """

    def __init__(
        self,
        folder: Path | str,
        plugin: str | Sequence[str] = (),
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, plugin)
        changes = absolute_changes(data or {})
        for part in ("valid", "test"):
            if not isinstance(changes.get(part, ""), str):
                raise ValueError(
                    f"expected data.{part} of a trained run to be a file; got {changes[part]}"
                )
        for name in changes.keys() - set(DATA_OPTIONS):
            raise ValueError(
                f"expected options that say where data are, {', '.join(DATA_OPTIONS)}; got {name!r}"
                f"{did_you_mean(name, DATA_OPTIONS)}"
            )
        self._data_changes = changes

    @cached_property
    def program(self) -> Autoencoder:
        """The trained program on the CPU, loaded once. This needs no data.

        Raises:
            RunError: if the run is not finished, or if its files do not belong together.
        """
        return self._open_program(self.experiment, "cpu")[0]

    @property
    def data(self) -> Dataset:
        """The data of the run, or the new data, loaded once when they are needed.

        Raises:
            FileNotFoundError: if a file is missing, with the option that names another one.
            RunError: if the data have changed since the run was trained.
        """
        return self._loaded.dataset

    @property
    def has_new_data(self) -> bool:
        """Whether :attr:`data` are others than those that the run was trained on."""
        return self._loaded.tag is not None

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment of the trained run, loaded once."""
        return self._open_experiment()

    @cached_property
    def _loaded(self) -> RunData:
        return self._load_data(self.experiment)

    @property
    def scale(self) -> Scale | None:
        """The scale of the data, which ``scale.undo`` removes from samples; needs no data."""
        return recorded_scale(self.read_result().get("data", {}))

    @property
    def columns(self) -> tuple[Column, ...] | None:
        """The columns of a table, with the categories of the training data; needs no data."""
        return recorded_columns(self.read_result().get("data", {}))

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, if labels are strings in the file; needs no data."""
        classes = self.read_result().get("data", {}).get("classes")
        return None if classes is None else tuple(classes)

    @property
    def data_files(self) -> list[Path]:
        """The existing files and folders of the data, those of the run and new ones."""
        return find_files(self.experiment, self._data_changes)

    def label_examples(self) -> Split | None:
        """Return placeholders with the labels to sample new examples for, without reading data.

        Returns:
            One example of each class, or one example if the program uses no labels; ``None`` if
            the labels are not classes, or if the run is of an earlier version.
        """
        return make_label_examples(self.program, self.read_result().get("data", {}))

    def _open_experiment(self) -> Experiment:
        self._check_trained()
        return self._load_experiment()

    def _load_data(self, experiment: Experiment) -> RunData:
        """Load the data of the run, after checking that they have not changed, or new data."""
        data = load_run_data(experiment, self.read_result().get("data", {}), self._data_changes)
        if data.tag is None:
            self._check_data(experiment, data.dataset, resume=True)
        return data

    def open(self, device: str = "cpu") -> tuple[Experiment, Dataset, Autoencoder]:
        """Return the experiment, its data and the trained model on ``auto``, ``cpu`` or ``cuda``.

        Raises:
            FileNotFoundError: if a file of the data is missing.
            RunError: if the run is not finished, or if its files do not belong together.
        """
        resolve_device(device)
        experiment = self._open_experiment()
        data, _ = self._load_data(experiment)
        return experiment, data, self._open_program(experiment, device, data)[0]

    def _open_program(
        self, experiment: Experiment, device: str, data: Dataset | None = None
    ) -> tuple[Autoencoder, str]:
        """Return the trained program and the SHA-256 of its weights.

        Arguments:
            experiment: the experiment of the run.
            device: ``auto``, ``cpu`` or ``cuda``.
            data: the data, if they are loaded already.
        """
        torch_device = resolve_device(device)
        shapes = recorded_shapes(experiment, self.read_result().get("data", {}))
        model = experiment.build_model(shapes or data or self.data)
        weights = self._load_weights(
            model, f"{self.weights} is damaged or belongs to another model than {self.config}"
        )
        if note := self._version_note():
            _log.warning("numbers may differ from those of %s%s", self.folder, note)
        return model.to(torch_device), weights

    def _load_weights(self, model: Autoencoder, problem: str) -> str:
        """Load this run's weights into the model and return their SHA-256.

        Raises:
            RunError: if they were changed; with ``problem`` and the reason, if they do not fit.
        """
        content = self.weights.read_bytes()
        checksum = self._check_weights(content)
        try:
            tensors = safetensors.torch.load(content)
            expected = model.state_dict()
            for name in tensors.keys() & expected.keys():
                if tensors[name].dtype != expected[name].dtype:
                    raise ValueError(
                        f"expected {name} to be {expected[name].dtype}; got {tensors[name].dtype}"
                    )
            model.load_state_dict(tensors)
        except (safetensors.SafetensorError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"{problem}: {reason}{self._version_note()}") from error
        return checksum

    def _load_experiment(self, plugins: Sequence[str] = ()) -> Experiment:
        """Load ``config.yaml``; raise if it is not that of ``result.json``."""
        try:
            experiment = load_experiment(self.config, [*self.plugins, *plugins])
        except PluginError:
            raise
        except ValueError as error:
            raise RunError(
                f"{self.config} is damaged or invalid ({error}{self._version_note()}): fix it, or "
                f"replace the run with --overwrite"
            ) from error
        trained = flatten_settings(self.read_result().get("config", {}))
        current = flatten_settings(experiment.settings_dict())
        # another version may have other settings
        changed = {k for k in trained.keys() & current.keys() if trained[k] != current[k]}
        if changed := sorted(changed - MUTABLE_SETTINGS):
            raise RunError(
                f"{self.config} has changed since the run was trained ({', '.join(changed)} "
                f"differ): restore it, or replace the run with --overwrite"
            )
        return experiment

    def _version_note(self) -> str:
        """Return a clause if another version trained the run; otherwise an empty string."""
        trained = self.read_result().get("versions", {}).get("pyro-vae")
        current = metadata.version("pyro-vae")
        if trained in (None, current):
            return ""
        return f"; the run was trained by pyro-vae {trained}, this is {current}"

    def _check_data(self, experiment: Experiment, data: Dataset, resume: bool) -> None:
        """Raise if the data or labels differ from those the run was trained on."""
        before = self.read_result().get("data", {}) if resume else {}
        now = {"checksum": data.checksum, "labels": labels_checksum(experiment.program, data)}
        for key, value in now.items():
            if before.get(key) not in (None, value):
                name = "checksum" if key == "checksum" else "checksum of the labels"
                raise RunError(
                    f"the data set {data.name!r} has changed since {self.folder} was trained "
                    f"({name} {str(value)[:12]}…, before {before[key][:12]}…): restore it or train "
                    f"again"
                )
