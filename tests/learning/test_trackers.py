"""Trackers: the files that each package writes hold what the training has measured."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import yaml
from run_folders import TINY, assert_error

import pyro_vae as pv
from pyro_vae.cli import app
from pyro_vae.learning.trackers import CSV, Tracker
from pyro_vae.learning.trackers.session import find_tracker


@pytest.fixture
def examples() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.bernoulli(torch.full((40, 6, 6), 0.3), generator=generator)


def make_program() -> pv.VAE:
    torch.manual_seed(0)
    network = pv.networks.MLP
    return pv.VAE(
        (6, 6),
        latent_dim=2,
        encoder=lambda *shapes: network(*shapes, hidden=(4,)),
        decoder=lambda *shapes: network(*shapes, hidden=(4,)),
    )


def train(x: torch.Tensor, folder: Path, epochs: int = 3, **options) -> pv.History:
    options = {"batch_size": 20, "checkpoint": folder / "state.pt", **options}
    return pv.fit(make_program(), x, valid=x[:8], epochs=epochs, compile=False, **options)


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as content:
        return list(csv.DictReader(content))


def test_csv_has_every_metric_and_a_picture(tmp_path, examples):
    history = train(examples, tmp_path, log=["csv"])
    folder = tmp_path / "logs" / "csv"
    rows = read_csv(folder / "metrics.csv")
    for row, record in zip(rows, history.epochs, strict=True):
        assert {k: float(v) for k, v in row.items()} == record
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["epochs"], config["batch_size"], config["objective"]["name"]) == (3, 20, "ELBO")
    pixels = matplotlib.image.imread(folder / "reconstructions-3.png")[..., 0]
    # eight validation examples: the row of examples above that of their means
    shown = pixels[:6].reshape(6, 8, 6).swapaxes(0, 1)
    np.testing.assert_allclose(shown, examples[:8], atol=1 / 255)
    assert not np.isin(pixels[6:], (0, 1)).all()
    assert matplotlib.image.imread(folder / "samples-3.png").shape[:2] == (4 * 6, 8 * 6)


def test_recording_does_not_affect_training(tmp_path, examples):
    plain = train(examples, tmp_path / "a")
    tracked = train(examples, tmp_path / "b", log=[CSV(pictures=1)])
    assert tracked["elbo"] == plain["elbo"]
    assert len([*(tmp_path / "b" / "logs" / "csv").glob("samples-*.png")]) == 3


def test_resumed_training_continues_the_record(tmp_path, examples):
    whole = train(examples, tmp_path / "whole", epochs=4)
    # killed after epoch 3, whose checkpoint was not written: epoch 3 is repeated
    folder = tmp_path / "resumed"

    class Killed(Exception):
        pass

    def kill(history):
        if len(history) == 3:
            raise Killed

    options = {"log": ["csv"], "checkpoint_every": 2}
    with pytest.raises(Killed):
        train(examples, folder, epochs=4, on_epoch=kill, **options)
    train(examples, folder, epochs=4, resume=True, **options)
    rows = read_csv(folder / "logs" / "csv" / "metrics.csv")
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [float(row["elbo"]) for row in rows] == whole["elbo"]
    # a training from the start replaces the record
    train(examples, folder, epochs=1, **options)
    assert len(read_csv(folder / "logs" / "csv" / "metrics.csv")) == 1


def test_tensorboard_events(tmp_path, examples):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resume, epochs in ((False, 2), (True, 3)):
        options = {"log": ["tensorboard"], "resume": resume}
        history = train(examples, tmp_path, epochs=epochs, **options)
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"), {"images": 0}).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("valid_elbo")]
    assert [step for step, _ in scalars] == [1, 2, 3]
    np.testing.assert_allclose([v for _, v in scalars], history["valid_elbo"], rtol=1e-6)
    image = events.Images("reconstructions")[-1]
    assert (image.step, image.width, image.height) == (3, 48, 12)
    assert "batch_size: 20" in str(events.Tensors("config/text_summary")[0].tensor_proto)


def read_log(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file of W&B, in the log format of LevelDB."""
    size, position, record = 2**15, 7, b""
    while position + 7 <= len(content):
        if size - position % size < 7:  # the rest of a block
            position += size - position % size
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]  # whole, first, middle, last
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_offline(tmp_path, examples):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    history = train(examples, tmp_path, log=[pv.trackers.WandB(project="p", mode="offline")])
    assert wandb.run is None  # closed
    (file,) = (tmp_path / "logs" / "wandb").rglob("run-*.wandb")
    values, names = [], set()
    deadline = time.monotonic() + 60
    records = []
    # another process completes the file after wandb has returned
    while not any(r.HasField("exit") for r in records) and time.monotonic() < deadline:
        time.sleep(0.2)
        content = [*read_log(file.read_bytes())]
        records = [wandb_internal_pb2.Record.FromString(data) for data in content]
    for record in records:
        items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
        if "elbo" in items:
            values.append(json.loads(items["elbo"]))
        names |= set(items) | {update.key for update in record.run.config.update}
    assert values == pytest.approx(history["elbo"], rel=1e-12)
    assert {"samples/path", "reconstructions/path", "batch_size"} <= names


@pytest.mark.filterwarnings("default")
def test_mlflow_database(tmp_path, examples, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    history = train(examples, tmp_path, epochs=2, log=["mlflow"])
    train(examples, tmp_path, epochs=3, log=["mlflow"], resume=True)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/logs/mlflow/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'pyro-vae'")
    (run,) = client.search_runs([experiment.experiment_id])
    found = client.get_metric_history(run.info.run_id, "elbo")
    assert [metric.step for metric in found] == [1, 2, 3]
    assert [metric.value for metric in found[:2]] == history["elbo"]
    assert run.data.params["batch_size"] == "20"
    assert run.info.status == "FINISHED"
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"samples-3.png", "reconstructions-2.png"} <= files


@pytest.mark.filterwarnings("default")
def test_trackio_database(tmp_path, examples, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "database"))  # read by the import
    pytest.importorskip("trackio")

    history = train(examples, tmp_path, log=["trackio"])
    (file,) = (tmp_path / "database").glob("*.db")
    rows = sqlite3.connect(file).execute("select step, metrics from metrics order by step")
    found = [(step, json.loads(m)["elbo"]) for step, m in rows if "elbo" in json.loads(m)]
    assert found == list(zip([1, 2, 3], history["elbo"], strict=True))


def test_a_failing_tracker_does_not_end_the_training(tmp_path, examples, caplog):
    class Broken(CSV):
        def log_metrics(self, metrics, epoch):
            raise ConnectionError("no route to host")

    with caplog.at_level(logging.WARNING):
        history = train(examples, tmp_path, log=[Broken(), "csv"])
    assert len(history) == len(read_csv(tmp_path / "logs" / "csv" / "metrics.csv")) == 3
    (warning,) = [r.getMessage() for r in caplog.records]
    assert warning == (
        "Broken stops recording, and training continues: ConnectionError: no route to host"
    )


def test_a_failing_training_closes_the_records(tmp_path, examples):
    ended = []

    class Recorder(CSV):
        def finish(self, failed=False):
            ended.append(failed)

    def stop(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(examples, tmp_path, log=[Recorder()], on_epoch=stop)
    assert ended == [True]


def test_missing_package_is_an_error_before_training(tmp_path, examples, monkeypatch):
    find = importlib.util.find_spec
    found = lambda name: None if name == "wandb" else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", found)
    message = r"WandB needs wandb: pip install 'pyro-vae\[wandb\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        train(examples, tmp_path, log=["csv", "wandb"])
    assert not [*tmp_path.iterdir()]  # nor has another tracker started


def test_names(tmp_path, examples):
    assert type(find_tracker("TensorBoard")) is type(find_tracker("tensorboard"))
    with pytest.raises(ValueError, match="got 'tensorbord'; did you mean tensorboard"):
        train(examples, tmp_path, log=["tensorbord"])
    with pytest.raises(TypeError, match="expected log to have trackers or their names; got int"):
        train(examples, tmp_path, log=[3])
    with pytest.raises(ValueError, match="pictures"):
        CSV(pictures=0)
    assert all(issubclass(getattr(pv.trackers, name), Tracker) for name in pv.trackers.__all__)


def test_command_line_records_training_and_evaluation(tmp_path, capsys):
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(TINY)
    argv = ["fit", "--config", str(config), "--run", str(run)]
    assert app.main([*argv, "--log", "[{class_path: CSV, pictures: 1}]"]) == 0
    argv = ["evaluate", str(run), "--num-samples", "10", "--num-data", "20", "--log", "csv"]
    assert app.main(argv) == 0
    folder = run / "logs" / "csv"
    assert len(read_csv(folder / "metrics.csv")) == 1
    summary = json.loads((folder / "summary.json").read_text())
    elbo = json.loads((run / "result.json").read_text())["bounds"]["estimates"]["elbo"]
    assert summary["bounds.estimates.elbo.value"] == elbo["value"]
    # what records a training is no setting of it
    assert "log" not in yaml.safe_load((run / "config.yaml").read_text())["fit"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["latent_dim"] == 2
    argv = ["fit", "--config", str(config), "--run", str(run), "--resume", "--log", "TensorBord"]
    assert_error(
        capsys,
        argv,
        "expected log to be one of CSV, MLflow, TensorBoard, Trackio, WandB, or a class of a "
        "--plugin as module.Class; got 'TensorBord'; did you mean TensorBoard.",
        run,
    )


def test_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "trackers.md"
    scope: dict = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(code, str(page), "exec"), scope)
    (file,) = tmp_path.glob("logs/*/csv/metrics.csv")
    assert len(read_csv(file)) == 2
