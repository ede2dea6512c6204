"""Tables whose rows run as submitit jobs, here locally; the command on Slurm is the same."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # not installed with the package

from experiments.table import Cell, Preset, Table, main

pytest.importorskip("submitit")

from experiments import grid

TOY = Table(
    name="toy",
    title="Learning rates of two latents",
    base="--data.name digits --data.binarize threshold --data.test 1600 --model.latent_dim 2",
    cells={
        "good": "--fit.optimizer Adam --fit.optimizer.lr 0.01",
        "bad": "--fit.optimizer Adam --fit.optimizer.lr 1e30",
    },
    presets={"smoke": Preset("--fit.epochs 2", 30, 20)},
)


@pytest.fixture
def toy(tmp_path):
    def run(*args: str) -> int:
        folders = ["--folder", str(tmp_path / "runs"), "--results", str(tmp_path)]
        return main(TOY, ["--preset", "smoke", "--device", "cpu", *folders, *args])

    return run


def test_rows_run_as_jobs_and_failures_are_reported_with_their_logs(toy, tmp_path, capsys):
    assert toy("--jobs", "2") == 1
    out, err = capsys.readouterr()
    good, bad = (Cell(TOY, "smoke", row, runs=tmp_path / "runs") for row in ("good", "bad"))
    bounds = good.run.read_bounds()
    line = f"good, seed 0: ELBO {bounds.elbo:.3f}, log p̂ {bounds.log_evidence:.3f}"
    assert out.count(line) == 1
    assert "2 jobs, local, 2 at a time" in out
    line = next(line for line in err.splitlines() if line.startswith("bad, seed 0: "))
    message, _, log = line.partition("; its log is ")
    assert "became" in message or "overflowed" in message or "not finite" in message
    assert message in Path(log).read_text(encoding="utf-8")
    assert "good" not in err
    assert not bad.run.weights.exists()
    results = json.loads((tmp_path / "toy-smoke.json").read_text(encoding="utf-8"))
    assert list(results["rows"]) == ["good"]
    problem = message.removeprefix("bad, seed 0: ")
    assert results["missing"] == {"bad, seed 0": f"failed: {problem}"}

    # finished cells are not submitted, and a killed job is not a result
    before = {p: p.stat().st_mtime_ns for p in good.folder.iterdir()}
    assert toy("--jobs", "1", "--slurm", "timeout_min=0", "slurm_partition=none") == 1
    out, err = capsys.readouterr()
    assert "good, seed 0: already finished" in out
    assert "1 jobs, local, 1 at a time" in out
    assert "bad, seed 0: the job ended without a result" in err
    assert {p: p.stat().st_mtime_ns for p in good.folder.iterdir()} == before


def test_number_of_simultaneous_jobs_is_limited():
    class Job:
        running = max_running = 0

        def __init__(self):
            self.polls_left = 3
            Job.running += 1
            Job.max_running = max(Job.max_running, Job.running)

        def done(self):
            self.polls_left -= 1
            Job.running -= self.polls_left == 0
            return self.polls_left <= 0

        def result(self):
            return None

        def cancel(self, check):
            raise AssertionError("nothing was interrupted")

    class FinishedCell:
        def status_line(self):
            return "done"

    pause, grid._POLL_SECONDS = grid._POLL_SECONDS, 0.0
    try:
        assert grid._run_queue([FinishedCell() for _ in range(7)], 3, lambda cell: Job()) == []
    finally:
        grid._POLL_SECONDS = pause
    assert (Job.max_running, Job.running) == (3, 0)


@pytest.mark.parametrize(
    ("signalled", "raised"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_jobs_are_cancelled_on_interrupt_or_termination(signalled, raised):
    cancelled = []

    class Job:
        def done(self):
            signal.raise_signal(signalled)

        def cancel(self, check):
            cancelled.append(self)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised), grid._cancel_jobs_on_exit():
        grid._run_queue(list("abc"), 2, lambda cell: Job())
    assert len(cancelled) == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_jobs_do_not_inherit_an_ignored_sigint():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with grid._cancel_jobs_on_exit():
            signal.raise_signal(signal.SIGINT)  # ignored as before
            assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_slurm_options_are_parsed():
    args = ["timeout_min=60", "mem_gb=1.5", "slurm_partition=gpu", "slurm_constraint=a=b"]
    assert grid.parse_slurm_options(args) == {
        "timeout_min": 60,
        "mem_gb": 1.5,
        "slurm_partition": "gpu",
        "slurm_constraint": "a=b",
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--jobs", "0"], "expected --jobs of at least 1; got 0"),
        (["--slurm", "mem_gb=1"], "expected --jobs with --slurm; got none: give the number"),
        (["--jobs", "1", "--slurm", "mem_gb"], "expected --slurm KEY=VALUE; got 'mem_gb'"),
        (["--jobs", "1", "--slurm", "memory=1"], "expected --slurm to name parameters of submitit"),
        (["--jobs", "1", "--slurm", "mem_gb=all"], "expected --slurm to name parameters of submit"),
    ],
)
def test_invalid_options_are_one_line_errors(toy, tmp_path, capsys, args, message):
    assert toy(*args) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"toy: {message}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list((tmp_path / "runs").rglob("*.yaml"))
