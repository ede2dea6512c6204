"""Runs that are interrupted or killed at any moment, and the commands after it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path

import pytest
import streams
from run_folders import TINY, assert_error, full_disk, snapshot

import pyro_vae as pv
from pyro_vae.cli import app
from pyro_vae.config.experiment import Experiment, parse
from pyro_vae.learning import trainer
from pyro_vae.report import write_report
from pyro_vae.runs import opening
from pyro_vae.runs.run import Run, RunError

OPTIONS = """\
--data.name digits --data.binarize static --data.valid 0 --data.train 100 --model.latent_dim 2
--model.encoder.hidden [8] --model.decoder.hidden [8] --fit.batch_size 50 --fit.device cpu"""


@cache
def make_experiment(epochs: int = 2, seed: int = 0) -> Experiment:
    return parse([*OPTIONS.split(), "--fit.epochs", str(epochs), "--fit.seed", str(seed)])


@pytest.fixture(autouse=True)
def cached_parsing(monkeypatch):
    """Load the data and parse each configuration once: hundreds of runs are opened here."""
    load, loaded = opening.load_experiment, {}

    def load_once(file, *args, **kwargs):
        text = file.read_text(encoding="utf-8")
        if text not in loaded:
            loaded[text] = load(file, *args, **kwargs)
        return loaded[text]

    monkeypatch.setattr(opening, "load_experiment", load_once)
    for name in ("load_data", "settings_dict"):
        monkeypatch.setattr(Experiment, name, cache(getattr(Experiment, name)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with bounds and a report."""
    run = Run(tmp_path_factory.mktemp("finished") / "run")
    run.fit(make_experiment())
    run.evaluate(num_samples=5, num_data=4)
    write_report(run)
    return run.folder


#: The functions by which Python changes a folder.
OPERATIONS = ("open", "replace", "rename", "unlink", "remove", "mkdir", "rmdir")


@contextmanager
def record_states(folder: Path, store: Path, monkeypatch) -> Iterator[list[Path]]:
    """Copy the folder before every file operation: the states that a kill can leave behind."""
    states: list[Path] = []
    seen = []
    recording = True

    def record():
        nonlocal recording
        if not recording or not folder.is_dir():
            return
        recording = False
        # the names of temporary files vary
        found = snapshot(folder).items()
        contents = [(n.rsplit("-", 1)[0], c) for n, c in found if not n.endswith(".lock")]
        contents += [(str(p.relative_to(folder)), b"") for p in folder.rglob("*") if p.is_dir()]
        if contents not in seen:
            seen.append(contents)
            states.append(Path(shutil.copytree(folder, store / str(len(states)) / "run")))
        recording = True

    with monkeypatch.context() as patch:
        for name in OPERATIONS:
            function = getattr(os, name)

            @wraps(function)
            def call(*args, _function=function, **kwargs):
                record()
                return _function(*args, **kwargs)

            patch.setattr(os, name, call)
        yield states
        record()


def assert_same_training(run: Run, reference: Run) -> None:
    assert run.weights.read_bytes() == reference.weights.read_bytes()
    ours, theirs = run.read_metrics(), reference.read_metrics()
    assert ours["elbo"] == theirs["elbo"] and ours["epoch"] == theirs["epoch"]
    run.open()


FILES = {"config.yaml", "metrics.jsonl", "result.json", "state.pt", "weights.safetensors"}
#: The training in a folder that is killed, and whether the folder has a finished run.
TRAININGS = {
    "new": (dict(experiment=make_experiment()), False),
    "overwrite": (dict(experiment=make_experiment(seed=1), overwrite=True), True),
    "extend": (dict(experiment=make_experiment(epochs=3), resume=True), True),
}


@pytest.mark.parametrize("case", TRAININGS)
def test_training_killed_between_any_two_file_operations(case, finished, tmp_path, monkeypatch):
    arguments, is_replacing = TRAININGS[case]
    folder = tmp_path / "run"
    if is_replacing:
        shutil.copytree(finished, folder)
    with record_states(folder, tmp_path / "states", monkeypatch) as states:
        Run(folder).fit(**arguments)
    reference, old = Run(folder), snapshot(finished)
    assert {path.name for path in folder.iterdir()} == FILES
    assert len(states) >= 12
    kept = 0
    for state in states:
        run = Run(state)
        present = snapshot(state)
        is_intact = is_replacing and old.items() <= present.items()
        kept += is_intact
        # every reader accepts the folder or names the next step
        if is_intact:
            assert run.read_bounds().num_samples == 5
            assert pv.compare(run)
        else:
            expected = "incomplete|no config.yaml|no bounds yet"
            with pytest.raises(RunError, match=expected):
                run.read_bounds()
        # the same command again, or --resume if there is a new run
        again = dict(arguments)
        if case == "overwrite" and not is_intact:
            again = {"experiment": make_experiment(seed=1), "resume": True}
        if case == "new":
            again["resume"] = True
        run.fit(**again)
        assert_same_training(run, reference)
        assert {path.name for path in state.iterdir()} == FILES
    assert kept == 0 or is_replacing
    # the previous run is kept until the first state is saved, and not longer
    assert not is_replacing or 4 <= kept < len(states) - 10


def test_evaluation_killed_between_any_two_file_operations(finished, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    with record_states(folder, tmp_path / "states", monkeypatch) as states:
        Run(folder).evaluate(num_samples=7, num_data=4)
    assert len(states) >= 4
    seen, between = set(), 0
    for state in states:
        run = Run(state)
        bounds = run.read_bounds()
        seen.add(bounds.num_samples)
        assert bounds.provenance["num_samples"] == bounds.num_samples
        if run.read_result()["bounds"]["num_samples"] != bounds.num_samples:
            write_report(run)  # killed between the two files: that of the examples counts
            median = bounds.provenance["ess"]["median"]
            assert f"median {median:.1f}," in run.report.read_text(encoding="utf-8")
            between += 1
        run.evaluate(num_samples=7, num_data=4)
        assert run.read_bounds().num_samples == run.read_result()["bounds"]["num_samples"] == 7
        names = {path.name for path in state.iterdir()}
        assert names == FILES | {"bounds.nc", "report.html", "figures"}
    assert seen == {5, 7} and between


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("case", ["overwrite", "extend"])
def test_interruption_before_the_first_checkpoint_keeps_the_run(
    case, error, finished, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    before = snapshot(folder)

    def interrupt(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", interrupt)
        with pytest.raises(error):
            Run(folder).fit(**TRAININGS[case][0])
    assert snapshot(folder) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interruption_after_the_first_checkpoint_keeps_the_state(error, finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))

    def interrupt(model, data, history):
        raise error

    experiment = make_experiment(seed=1)
    with pytest.raises(error):
        Run(folder).fit(experiment, overwrite=True, on_epoch=interrupt)
    run = Run(folder)
    assert {path.name for path in folder.iterdir()} == FILES - {"weights.safetensors"}
    assert run.read_result()["seed"] == 1 and len(run.read_metrics()) == 1
    run.fit(experiment, resume=True)
    Run(tmp_path / "whole").fit(experiment)
    assert_same_training(run, Run(tmp_path / "whole"))


def test_failure_before_the_first_checkpoint_removes_a_new_folder(tmp_path):
    def fail(model, data, history):
        Path(tmp_path, "run", "of-the-callback").write_text("")
        raise RuntimeError

    every = parse([*OPTIONS.split(), "--fit.epochs", "5", "--fit.checkpoint_every", "5"])
    with pytest.raises(RuntimeError):
        Run(tmp_path / "run").fit(every, on_epoch=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [100, 6000])
@pytest.mark.parametrize("case", ["overwrite", "extend"])
def test_full_disk_keeps_the_run(case, limit, finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    before = snapshot(folder)
    name = r"run/\.pending/config\.yaml" if limit == 100 else r"run/state\.pt"
    with full_disk(limit), pytest.raises(OSError, match=f"could not write .*{name}, .* large"):
        Run(folder).fit(**TRAININGS[case][0])
    assert snapshot(folder) == before and not (folder / ".pending").exists()


@pytest.fixture
def workdir(finished, tmp_path, monkeypatch) -> Path:
    """The current folder, with ``tiny.yaml`` and the finished ``run``."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_process_killed_while_it_replaces_a_run(workdir):
    before = snapshot(Path("run"))
    command = ["fit", "--config", "tiny.yaml", "--run", "run", "--overwrite"]
    process = subprocess.Popen(
        streams.pyro_vae(*command, "--fit.batch_size", "1"), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while not Path("run/.pending/previous-state").is_file():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    # readers are not disturbed by a running training
    assert Run("run").read_bounds().num_samples == 5
    with pytest.raises(RunError, match=rf"run is in use by .*\(process {process.pid} on"):
        Run("run").evaluate(num_samples=6)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    after = snapshot(Path("run"))
    assert before.items() <= after.items() and Path("run/.bounds.lock") in Path("run").iterdir()
    write_report(Run("run"))
    assert snapshot(Path("run")).keys() == before.keys()


#: What killed processes left in a folder without a run.
LEFTOVERS = {
    "old backup": [".replaced-abcdefgh/", ".config-pn87icny.yaml"],
    "lock": [".bounds.lock", ".report.lock"],
    "configuration": [".config-ab.yaml"],
    "pending": [".pending/config.yaml"],
}


@pytest.mark.parametrize("case", LEFTOVERS)
@pytest.mark.parametrize("option", [[], ["--resume"], ["--overwrite"]])
def test_leftovers_count_as_an_empty_folder(case, option, workdir, capsys):
    for name in LEFTOVERS[case]:
        path = Path("new", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("")
    assert app.main(["fit", "--config", "tiny.yaml", "--run", "new", *option]) == 0
    assert {path.name for path in Path("new").iterdir()} == FILES
    # other files are not leftovers
    Path("other").mkdir()
    for name in (".notes.yaml", ".config-.yaml", "config-ab.yaml"):
        Path("other", name).write_text("mine")
        message = "expected other to be a new folder or the folder of a run; .*"
        command = ["fit", "--config", "tiny.yaml", "--run", "other", *option]
        assert_error(capsys, command, message, workdir)
        Path("other", name).unlink()


def test_backup_of_version_0_3_is_restored(workdir):
    """Killed with ``--overwrite`` before the first checkpoint."""
    before = snapshot(Path("run"))
    backup = Path("run/.replaced-abcdefgh")
    backup.mkdir()
    for path in list(Path("run").iterdir()):
        if path != backup:
            path.rename(backup / path.name)
    for name in ("config.yaml", "result.json"):
        shutil.copy(backup / name, "run")
    assert app.main(["evaluate", "run", "--num-samples", "5", "--num-data", "4"]) == 0
    assert snapshot(Path("run")).keys() == before.keys()


@pytest.mark.parametrize("command", ["evaluate run --num-samples 5 --num-data 4", "report run"])
def test_next_command_removes_what_killed_ones_left(command, workdir, capsys):
    names = [".bounds-r07fscjs.nc", ".result-tt56klpy.json", ".report-abc.html", ".bdmc.lock"]
    names += ["figures/.bounds-abc.png", ".gaps.npz-abc.train", ".bounds.npz-x_1.1of2"]
    before = snapshot(Path("run")).keys()
    for name in names:
        Path("run", name).write_text("half")
    # files of a running process, and of the user
    others = ["figures/.sample-abc.png", ".notes", ".bounds-notes.txt"]
    for name in others:
        Path("run", name).write_text("half")
    with Path("run", others[0]).open() as running:
        fcntl.flock(running, fcntl.LOCK_EX)
        assert app.main(command.split()) == 0
    assert snapshot(Path("run")).keys() == {*before, *others}


def test_resuming_without_the_state_is_refused(workdir, capsys):
    Path("run/state.pt").unlink()
    command = ["fit", "--run", "run", "--resume", "--fit.epochs"]
    message = (
        "expected run/state.pt to resume from; the file is missing, although the run has been "
        "trained: restore it, or train from the start with --overwrite"
    )
    assert_error(capsys, [*command, "3"], message, workdir)
    # nothing is left to train
    assert app.main([*command, "2"]) == 0
    Path("run/weights.safetensors").unlink()
    assert_error(capsys, [*command, "2"], message, workdir)
