"""Trackers that write through the packages of TensorBoard, W&B, MLflow and Trackio."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .base import Tracker, flatten

__all__ = ["MLflow", "TensorBoard", "Trackio", "WandB"]


class TensorBoard(Tracker):
    """Event files of TensorBoard: ``tensorboard --logdir FOLDER``.

    References:
        https://www.tensorflow.org/tensorboard
    """

    requires = "tensorboard"

    def open(self, name: str, config: Mapping[str, Any], *, resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # events after the last epoch of the state belong to epochs that are repeated
        purge = self.state.get("epoch", 0) + 1 if resumed else None
        assert self.folder is not None
        self._outdated = [] if resumed else [*self.folder.glob("events.out.tfevents.*")]
        self._writer = SummaryWriter(str(self.folder), purge_step=purge)
        if not resumed:
            import yaml

            text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            self._writer.add_text("config", f"# {name}\n```yaml\n{text}```")

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        for path in self._outdated:  # of an earlier training, kept until this one has a record
            path.unlink()
        self._outdated = []
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def log_picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        self._writer.add_image(name, pixels, epoch, dataformats="HWC")

    def log_summary(self, values: Mapping[str, Any]) -> None:
        epoch = self.state.get("epoch", 0)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, epoch)
            else:
                self._writer.add_text(name, str(value), epoch)

    def finish(self, failed: bool = False) -> None:
        self._writer.close()


class WandB(Tracker):
    """A run of Weights & Biases.

    Arguments:
        project: the project that the run belongs to.
        entity: user or team; by default that of your login.
        mode: ``online``, or ``offline`` to write files only, which ``wandb sync`` uploads; by
            default ``WANDB_MODE``, or ``online``.
        folder, pictures: see :class:`Tracker`.

    References:
        https://docs.wandb.ai
    """

    requires = "wandb"

    def __init__(
        self,
        project: str = "pyro-vae",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
        folder: Path | str | None = None,
        pictures: int | None = None,
    ) -> None:
        super().__init__(folder, pictures)
        self.project, self.entity, self.mode = project, entity, mode

    def open(self, name: str, config: Mapping[str, Any], *, resumed: bool) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run: Any = wandb.init(
            project=self.project,
            entity=self.entity,
            name=name,
            id=self.state.get("id"),
            resume="allow" if resumed else None,
            config=dict(config),
            dir=str(self.folder),
            mode=self.mode,
            settings=wandb.Settings(console="off", silent=True),
        )
        self.state["id"] = self._run.id

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(metrics), step=epoch)

    def log_picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run.log({name: wandb.Image(pixels)}, step=epoch)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def finish(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """A run of MLflow.

    Arguments:
        experiment: the experiment that the run belongs to.
        uri: where to record; by default ``MLFLOW_TRACKING_URI``, or a database in the folder:
            ``mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db``.
        folder, pictures: see :class:`Tracker`.

    References:
        https://mlflow.org/docs/latest/ml/tracking
    """

    requires = "mlflow"

    def __init__(
        self,
        experiment: str = "pyro-vae",
        uri: str | None = None,
        folder: Path | str | None = None,
        pictures: int | None = None,
    ) -> None:
        super().__init__(folder, pictures)
        self.experiment, self.uri = experiment, uri

    def open(self, name: str, config: Mapping[str, Any], *, resumed: bool) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        assert self.folder is not None
        folder = self.folder.absolute()
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(uri or f"sqlite:///{folder / 'mlflow.db'}")
        if resumed:
            self._id = self.state["id"]
            self._client.update_run(self._id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(self.experiment)
        location = None if uri else (folder / "artifacts").as_uri()
        experiment = (
            found.experiment_id
            if found
            else self._client.create_experiment(self.experiment, artifact_location=location)
        )
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        self.state["id"] = self._id
        for key, value in flatten(config):
            # MLflow's limit of the length of a value
            self._client.log_param(self._id, key, str(value)[:500])

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        for name, value in metrics.items():
            self._client.log_metric(self._id, _plain(name), value, step=epoch)

    def log_picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        self._client.log_image(self._id, pixels, artifact_file=f"{name}-{epoch}.png")

    def log_summary(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float):
                self._client.log_metric(self._id, _plain(name), value)
            else:
                self._client.set_tag(self._id, _plain(name), str(value))

    def finish(self, failed: bool = False) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class Trackio(Tracker):
    """A run of Trackio, in its own local database: ``trackio show``.

    Arguments:
        project: the project that the run belongs to.
        space: Space of the Hugging Face hub to record in, instead of the local database.
        folder, pictures: see :class:`Tracker`.

    References:
        https://huggingface.co/docs/trackio
    """

    requires = "trackio"

    def __init__(
        self,
        project: str = "pyro-vae",
        space: str | None = None,
        folder: Path | str | None = None,
        pictures: int | None = None,
    ) -> None:
        super().__init__(folder, pictures)
        self.project, self.space = project, space

    def open(self, name: str, config: Mapping[str, Any], *, resumed: bool) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._trackio: Any = trackio
        self.state.setdefault("name", name)
        self._run: Any = trackio.init(
            project=self.project,
            name=self.state["name"],
            space_id=self.space,
            config=dict(config),
            resume="allow" if resumed else "never",
            embed=False,
        )

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        # "step" is a reserved name
        values = {"updates" if name == "step" else name: v for name, v in metrics.items()}
        self._run.log(values, step=epoch)

    def log_picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        self._run.log({name: self._trackio.Image(pixels)}, step=epoch)

    def log_summary(self, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=self.state.get("epoch", 0))

    def finish(self, failed: bool = False) -> None:
        self._run.finish()


def _plain(name: str) -> str:
    """Return a name in the characters that MLflow accepts."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./ ") else "_" for c in name)
