"""Tables whose rows run as submitit jobs, here locally; the command on Slurm is the same."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripts import make_args, read_json

from experiments.cells import Cell
from experiments.command import main
from experiments.tables import Preset, Table

submitit = pytest.importorskip("submitit")

from experiments import jobs  # noqa: E402

TOY = Table(
    name="toy",
    title="Learning rates of two latents",
    base="--data.name digits --data.binarize threshold --data.test 1600 --model.latent_dim 2",
    cells={
        "good": "--fit.optimizer Adam --fit.optimizer.lr 0.01",
        "bad": "--fit.optimizer Adam --fit.optimizer.lr 1e30",
    },
    presets={"smoke": Preset("--fit.epochs 1", 30, 20)},
)


def test_rows_run_as_jobs_and_failures_are_reported_with_their_logs(tmp_path, capsys):
    assert main(TOY, make_args(tmp_path, "--jobs", "2")) == 1
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
    results = read_json(tmp_path / "toy-smoke.json")
    assert list(results["rows"]) == ["good"]
    problem = message.removeprefix("bad, seed 0: ")
    assert results["missing"] == {"bad, seed 0": f"failed: {problem}"}

    # finished cells are not submitted
    assert main(TOY, make_args(tmp_path, "--only", "good", "--jobs", "1")) == 0
    out = capsys.readouterr().out
    assert "good, seed 0: already finished" in out and "1 at a time" not in out


def test_killed_job_is_not_a_result():
    def fail():
        raise submitit.core.utils.UncompletedJobError("no result file")

    job = SimpleNamespace(result=fail, state="TIMEOUT", done=lambda: True)
    ((cell, failed, problem),) = jobs.run_queue(["cell"], 1, lambda cell: job)
    assert (cell, failed) == ("cell", job)
    assert problem == "the job ended without a result (timeout)"


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

    cells = [FinishedCell() for _ in range(7)]
    assert jobs.run_queue(cells, 3, lambda cell: Job(), poll_seconds=0.0) == []
    assert (Job.max_running, Job.running) == (3, 0)


@pytest.fixture
def restored_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("signalled", "raised"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_jobs_are_cancelled_on_interrupt_or_termination(signalled, raised, restored_handlers):
    cancelled = []
    # a shell script starts background processes with SIGINT ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Job:
        def done(self):
            signal.raise_signal(signalled)

        def cancel(self, check):
            cancelled.append(self)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised), jobs.cancel_on_exit():
        jobs.run_queue(list("abc"), 2, lambda cell: Job())
    assert len(cancelled) == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_jobs_do_not_inherit_an_ignored_sigint(restored_handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with jobs.cancel_on_exit():
        signal.raise_signal(signal.SIGINT)  # ignored as before
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_slurm_options_are_parsed():
    args = ["timeout_min=60", "mem_gb=1.5", "slurm_partition=gpu", "slurm_constraint=a=b"]
    assert jobs.parse_slurm_options(args) == {
        "timeout_min": 60,
        "mem_gb": 1.5,
        "slurm_partition": "gpu",
        "slurm_constraint": "a=b",
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--jobs", "1", "--slurm", "mem_gb"], "expected --slurm KEY=VALUE; got 'mem_gb'"),
        (["--jobs", "1", "--slurm", "memory=1"], "expected --slurm to name parameters of submitit"),
        (["--jobs", "1", "--slurm", "mem_gb=all"], "expected --slurm to name parameters of submit"),
    ],
)
def test_invalid_options_are_one_line_errors(tmp_path, capsys, args, message):
    assert main(TOY, make_args(tmp_path, *args)) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"toy: {message}")
    assert err.count("\n") == 1
    assert out == ""
    assert not list((tmp_path / "runs").rglob("*.yaml"))
