"""The benchmarks: turns, ratios and the table on made-up times; contenders do the same work."""

# the peers' folder is no package, and not all of its packages are installed here
# pyright: reportMissingImports=false

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments" / "benchmarks"))

import bench
import busy
import cores
import limits
import ours
import rounds
import scaling
import setting
import table
import topics
from job import Job, fastest
from peers import plain_torch, pyro_svi
from process import Worker, WorkerError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "benchmarks"
PIXELS, TOY_HIDDEN = 6, 3
HERE = {"ours": ours, "pyro": pyro_svi, "torch": plain_torch}
needs_peers = pytest.mark.skipif(
    not bench.PEERS.exists(), reason="the peers are not installed: make bench-peers"
)
OTHERS = [
    pytest.param("peers.numpyro_scan", marks=needs_peers),
    pytest.param("peers.pythae_trainer", marks=needs_peers),
]
JUDGES = [
    pytest.param("peers.jax_jit", marks=needs_peers),
    pytest.param("peers.pythae_trainer", marks=needs_peers),
]


@pytest.fixture(autouse=True)
def validated():
    """Contenders switch Pyro's validation off for good; here it is on again after each test."""
    with pyro.validation_enabled(True):
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    """A problem of six pixels and one latent variable, whose log p(x) a sum over z gives."""
    rng = np.random.default_rng(0)
    arrays = {}
    sizes = {"encoder": (PIXELS, TOY_HIDDEN, 2), "decoder": (1, TOY_HIDDEN, PIXELS)}
    for name, widths in sizes.items():
        for i, shape in enumerate(zip(widths[1:], widths[:-1], strict=True)):
            arrays[f"{name}.{i}.weight"] = rng.normal(size=shape).astype(np.float32)
            arrays[f"{name}.{i}.bias"] = rng.normal(size=shape[0]).astype(np.float32) / 2
    arrays["train"] = rng.random((500, PIXELS)) < 0.4
    arrays["test"] = rng.random((20, PIXELS)) < 0.4
    path = tmp_path_factory.mktemp("toy") / "toy.npz"
    np.savez(path, **arrays)
    return str(path)


def bounds(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """ELBO of the training and log p(x) of the test data, summed over a fine grid of noise."""

    def mlp(layers, h):
        for weight, bias in layers[:-1]:
            h = np.tanh(h @ weight.T + bias)
        return h @ layers[-1][0].T + layers[-1][1]

    def joint(x, z):
        logits = mlp(job.data.decoder, z[..., None])
        log_likelihood = (x[:, None] * logits - np.logaddexp(0, logits)).sum(-1)
        return log_likelihood - z**2 / 2 - math.log(2 * math.pi) / 2

    grid = np.linspace(-9, 9, 4001)
    step = grid[1] - grid[0]
    loc, log_scale = mlp(job.data.encoder, job.data.train).T[..., None]
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * step
    entropy = 0.5 * math.log(2 * math.pi * math.e) + log_scale[:, 0]
    energy = joint(job.data.train, loc + np.exp(log_scale) * grid) @ density
    z = np.broadcast_to(grid, (len(job.data.test), len(grid)))
    evidence = np.log(np.exp(joint(job.data.test, z)).sum(1) * step)
    return energy + entropy, evidence


# turns and statistics


def test_all_are_first_equally_often_and_work_alone():
    seen = []
    told = rounds.interleaved(["a", "b", "c"], 4, lambda name: seen.append(name) or len(seen))
    assert "".join(seen) == "abc" + "bca" + "cab" + "abc"
    assert told == {"a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12]}


def test_a_ratio_is_formed_within_a_round():
    # the machine was ten times slower in the second round, and twice in the third
    found = rounds.ratio([2.0, 30.0, 5.0], [4.0, 40.0, 8.0])
    assert found == {"median": 0.625, "quartiles": [0.5625, 0.6875], "range": [0.5, 0.75]}
    # which a ratio of medians would not be
    assert np.median([2, 30, 5]) / np.median([4, 40, 8]) == 0.625
    assert rounds.ratio([1, 30, 5], [4, 40, 2])["median"] == 0.75
    with pytest.raises(ValueError, match="zip"):
        rounds.ratio([1.0], [1.0, 2.0])


def test_ratios_name_their_pairs():
    seconds = {"ours": [1.0], "ours_eager": [3.0], "pyro": [4.0], "limit": [0.5]}
    found = {name: told["median"] for name, told in rounds.ratios(seconds).items()}
    assert found == {
        "ours / ours_eager": 0.3333,
        "ours / pyro": 0.25,
        "ours / limit": 2.0,
        "ours_eager / pyro": 0.75,
    }


def test_who_learns_otherwise_is_refused():
    losses = {"a": [150.0, 120.0], "b": [151.0, 119.0], "c": [149.0, 121.0]}
    rounds.agree_on_losses(losses)
    for wrong in ([150.0, 150.0], [135.0, 105.0], [150.0, math.nan]):
        with pytest.raises(rounds.DisagreementError, match="expected the loss of 'd' in round"):
            rounds.agree_on_losses({**losses, "d": wrong})


def test_who_judges_otherwise_is_refused():
    # seeded; a false alarm has probability 1e-4
    rng = np.random.default_rng(0)
    rows = {n: [list(rng.normal(-90, 0.1, k)) for _ in range(7)] for n, k in (("a", 9), ("b", 4))}
    rows["c"] = [list(rng.normal(-90, 0.1, 4)) for _ in range(7)]
    rounds.agree_on_estimates(rows)
    rows["c"] = [[value + 0.3 for value in row] for row in rows["c"]]
    with pytest.raises(rounds.DisagreementError, match=r"expected the mean L_K of '.' on 4 images"):
        rounds.agree_on_estimates(rows)


def test_times_are_per_step_or_sample_and_the_limit_is_its_value():
    measured = setting.Measured(
        counts={"ours": 10, "limit": 1},
        seconds={"ours": [5.0], "limit": [77.0]},
        steady={"ours": 1, "limit": 1},
        values={"ours": [[1.0]], "limit": [[0.25, 0.125, 0.0625, 0.0625]]},
        told={"ours": {"busy_seconds": 0.4, "wall_seconds": 9.0}, "limit": {}},
    )
    assert measured.seconds_per() == {"ours": [0.5], "limit": [0.25]}
    assert measured.seconds_per(100) == {"ours": [0.005], "limit": [0.25]}
    told = topics.told(setting.Setting(Path(), None, "cpu", 1), measured)
    assert told["limit"]["products"]["median"] == 0.125
    assert told["fraction_of_limit"]["median"] == 0.5
    assert told["ratios"]["ours / its kernels"]["median"] == 1.25
    assert told["utilisation"]["ours"]["median"] == 0.8


def test_the_fastest_way_is_found():
    calls = []
    ways = {"slow": lambda: sum(range(300_000)), "fast": lambda: calls.append(0)}
    assert fastest(ways) == "fast"
    assert len(calls) == 2


def test_the_speed_up_of_one_thread_is_one(toy):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [cores.there(Job("step", toy))(1)() for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    speed_ups, rates = zip(*found, strict=True)
    assert 0.7 < np.median(speed_ups) < 1.4
    # bytes a second: more than any disk, less than any core's registers
    assert 1e8 < 4 * 2**20 * np.median(rates) < 1e12


# the same work


def test_minibatches_are_the_same_for_everybody_and_pass_over_all_data(toy):
    job = Job("step", toy, batch=8)
    one, other = job.minibatches(), job.minibatches()
    rows = one(125)
    np.testing.assert_array_equal(rows, np.concatenate([other(n) for n in (3, 60, 62)]))
    assert rows.shape == (125, 8)
    assert [(*np.sort(half),) for half in np.split(rows.ravel(), 2)] == [(*range(500),)] * 2


def check_losses(run_one, truth: np.ndarray) -> None:
    """That steps at learning rate zero give minus the ELBO; a false alarm has p = 6e-7."""
    found = np.array([run_one() for _ in range(60)])
    assert abs(found.mean() + truth.mean()) < 5 * found.std(ddof=1) / math.sqrt(len(found))


@pytest.mark.parametrize("name", HERE)
def test_the_loss_of_a_step_is_minus_the_elbo(name, toy):
    job = Job("step", toy, batch=50, learning_rate=0.0)
    elbo, _ = bounds(job)
    plan = HERE[name].TASKS["step"](job)
    check_losses(lambda: plan(1)()[0], elbo)


@pytest.mark.parametrize("module", OTHERS)
def test_the_loss_of_a_step_is_minus_the_elbo_in_the_other_environment(module, toy):
    job = Job("step", toy, batch=50, learning_rate=0.0)
    elbo, _ = bounds(job)
    with Worker(module, bench.PEERS, module, job, 1) as worker:
        check_losses(lambda: worker.ask(run=1)["values"][0], elbo)


def learned(ask) -> list[float]:
    """Mean losses of six rounds of fifty steps."""
    return [ask(50)[0] for _ in range(6)]


def test_every_contender_learns_the_same(toy):
    job = Job("step", toy, batch=50, learning_rate=0.01)
    elbo, _ = bounds(job)
    losses = {}
    for name, module in HERE.items():
        plan = module.TASKS["step"](job)
        losses[name] = learned(lambda count, plan=plan: plan(count)())
    if bench.PEERS.exists():
        for (module,) in (other.values for other in OTHERS):
            with Worker(module, bench.PEERS, module, job, 1) as worker:
                losses[module] = learned(lambda count: worker.ask(run=count)["values"])
    rounds.agree_on_losses(losses)
    for name, found in losses.items():
        assert found[-1] < -elbo.mean() - 0.3, name


@pytest.mark.parametrize("name", ["ours", "pyro"])
def test_the_loss_of_iwae_with_many_draws_is_minus_log_p(name, toy):
    job = Job("iwae", toy, batch=100, num_samples=500, learning_rate=0.0)
    plan = HERE[name].TASKS["iwae"](job)
    found = np.mean([plan(1)()[0] for _ in range(20)])
    # whose bias is a thousandth here, as is the noise of four passes; L_50 is off by 0.02
    job.data.test = job.data.train
    _, evidence = bounds(job)
    assert found == pytest.approx(-evidence.mean(), abs=0.008)


@pytest.mark.parametrize("name", ["ours", "pyro", "evaluate"])
def test_l_k_is_log_p(name, toy):
    job = Job("evaluation", toy, num_samples=20_000)
    _, evidence = bounds(job)
    tasks = HERE.get(name, ours).TASKS
    plan = tasks["evaluate" if name == "evaluate" else "evaluation"](job)
    np.testing.assert_allclose(plan(8)(), evidence[:8], atol=0.05)


@pytest.mark.parametrize("module", JUDGES)
def test_l_k_is_log_p_in_the_other_environment(module, toy):
    job = Job("evaluation", toy, num_samples=20_000)
    _, evidence = bounds(job)
    with Worker(module, bench.PEERS, module, job, 1) as worker:
        np.testing.assert_allclose(worker.ask(run=8)["values"], evidence[:8], atol=0.05)


# the processes

FAKE = """
import os, sys, time
import numpy as np
PACKAGES = ("numpy",)

def good(job):
    kept = []
    def plan(count):
        time.sleep(0.3)
        def run():
            print("a library that talks")
            if job.batch == 64:
                kept.append(np.ones(64 * 2**17))
            return [count * 2.0]
        return run
    return plan

def dying(job):
    def run():
        print("out of memory, say", file=sys.stderr, flush=True)
        os._exit(7)
    return lambda count: run

def wrong(job):
    raise ValueError("expected something;\\n got nothing")

TASKS = {"good": good, "dying": dying, "wrong": wrong}
"""


@pytest.fixture
def fake(tmp_path, monkeypatch, toy):
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(task: str, python: str = sys.executable, module: str = "fake", **options) -> Worker:
        return Worker("peer", Path(python), module, Job(task, toy, **options), 1)

    return start


def test_a_worker_answers_times_values_and_memory(fake):
    with fake("good", batch=64) as worker:
        assert worker.versions == {"numpy": np.__version__}
        before = worker.ask(memory=True)["above_mib"]
        answer = worker.ask(run=21)
        assert answer["values"] == [42.0]
        # to make ready is not timed
        assert 0 < answer["seconds"] < 0.3
        if before is not None:
            assert worker.ask(memory=True)["above_mib"] - before == pytest.approx(64, abs=3)


def test_a_worker_that_dies_is_one_sentence(fake):
    with (
        fake("dying") as worker,
        pytest.raises(
            WorkerError,
            match=r"^expected the contender 'peer' to answer; got the end of its process with "
            r"status 7, after it wrote 'out of memory, say'$",
        ),
    ):
        worker.ask(run=1)


def test_what_goes_wrong_in_a_worker_is_one_sentence(fake):
    said = "^expected the contender 'peer' to answer; got ValueError: expected something; got no"
    with pytest.raises(WorkerError, match=said):
        fake("wrong")
    with pytest.raises(WorkerError, match="No module named 'nowhere'"):
        fake("good", module="nowhere")
    with pytest.raises(WorkerError, match=r"make the peers' with make bench-peers$"):
        fake("good", python="/nowhere/python")


def test_kernels_that_overlap_count_once():
    assert busy.covered([]) == 0
    assert busy.covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.75)]) == 4.0


def test_the_profiler_sees_operators():
    x = torch.ones(200, 200)
    found = busy.profiled(lambda: [float((x @ x).sum()) for _ in range(20)])
    assert 0 < found["busy_seconds"] <= found["wall_seconds"]


def test_a_worker_can_be_watched(toy):
    with Worker("torch", Path(sys.executable), "peers.plain_torch", Job("step", toy), 1) as worker:
        found = worker.ask(profile=5)
    assert 0 < found["busy_seconds"] <= found["wall_seconds"]


def test_all_take_turns_and_on_a_gpu_are_watched(tmp_path, monkeypatch):
    asked = []

    class Fake:
        def __init__(self, name, python, module, job, threads):
            self.name, self.seconds = name, 1.5
            self.versions = {"jax": "1"} if module == "jax" else {"torch": "2"}
            assert (job.device, job.compiled, threads) == ("cuda", name == "ours", 2)
            assert str(python) == ("peers" if module == "jax" else sys.executable)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            asked.append((self.name, "end"))

        def ask(self, **request):
            asked.append((self.name, next(iter(request))))
            kinds = {
                "run": {"seconds": 2.0, "values": [float(len(asked))]},
                "memory": {"above_mib": 8.0},
                "profile": {"busy_seconds": 3.0, "wall_seconds": 6.0},
            }
            return next(kinds[kind] for kind in request)

    monkeypatch.setattr(setting, "Worker", Fake)
    here = setting.Setting(tmp_path, Path("peers"), "cuda", 2)
    contenders = [
        setting.Contender("ours", "ours", 6, options={"compiled": True}),
        setting.Contender("jax", "jax", 3, own=True),
        setting.Contender("limit", "limits", 1),
    ]
    measured = here.measure(contenders, Job("step", "nowhere"), 2)
    ran = [name for name, kind in asked if kind == "run"]
    # the first of each is not counted
    assert ran == ["ours", "jax", "limit"] * 2 + ["jax", "limit", "ours"]
    assert measured.values == {"ours": [[4], [9]], "jax": [[5], [7]], "limit": [[6], [8]]}
    assert measured.seconds_per()["ours"] == [2 / 6] * 2
    assert measured.told["ours"]["busy_seconds"] == 0.5
    assert ["profile" in str(a) for a in asked].count(True) == 1
    # without their environment, those who need it do not take part
    asked.clear()
    here = setting.Setting(tmp_path, None, "cuda", 2)
    assert {*here.measure(contenders, Job("step", "nowhere"), 1).told} == {"ours", "limit"}


# the limit


def test_the_limit_counts_every_product(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "product_seconds", lambda n, k, m, device: 2.0 * n * k * m)
    monkeypatch.setattr(limits, "element_seconds", lambda kernels, size, device: 1.0)
    monkeypatch.setattr(limits, "byte_seconds", lambda size, device: 1.0)
    path = str(topics.Setting(tmp_path, None, "cpu", 1).problem((200, 200), 50))
    total, products, elements, moved = limits.step(Job("step", path, batch=20))(1)()
    layers = [(784, 200), (200, 200), (200, 100), (50, 200), (200, 200), (200, 784)]
    # forwards and twice backwards, but nobody asks for the gradient of the data
    assert products == 2 * 20 * (3 * sum(a * b for a, b in layers) - 784 * 200)
    assert elements == 20 * (2 * 784 + 2 * 400)
    parameters = sum((a + 1) * b for a, b in layers)
    assert moved == 4 * (7 * parameters + 2 * 20 * 784)
    assert total == products + elements + moved
    _, products, elements, _ = limits.evaluation(Job("evaluation", path, num_samples=9))(1)()
    assert products == 2 * (50 * 200 + 200 * 200 + 200 * 784)
    assert elements == 400 + 784


def test_only_float32_products_count():
    a, b = torch.randn(64, 300), torch.randn(300, 50)
    assert "highest" in limits.settings(a, b)
    before = torch.get_float32_matmul_precision()
    assert limits.product_seconds(64, 300, 50, "cpu") > 0
    assert torch.get_float32_matmul_precision() == before


# topics


def test_quick_steps_and_estimates(tmp_path, capsys):
    words = ["--quick", "--threads", "1", "--results", str(tmp_path)]
    assert bench.main([*words, "--only", "step", "evaluation"]) == 0
    results = table.read(tmp_path)
    assert {*results} == {"step", "evaluation"}
    step = results["step"]
    assert step["threads"] == 1
    assert {*step["ratios"]} == {"ours / pyro", "ours / torch", "ours / limit"}
    for name, told in step["contenders"].items():
        assert told["versions"]["torch"] == torch.__version__
        assert len(step["losses"].get(name, [0] * 3)) == step["rounds"] == 3
    # nobody is below the limit
    assert step["limit"]["all"]["range"][0] < step["seconds"]["ours"]["median"]
    figures = {line[0]: line for line in table.rows(table.CPU, results)}
    assert sum(line[-1] == "not measured" for line in figures.values()) == 6


def test_imports_are_interleaved(tmp_path, monkeypatch):
    asked = []

    def made_up(here, command, cache=None):
        asked.append((command[-1], cache))
        return 3.0 if "pyro_vae" in str(command) else 2.0

    monkeypatch.setattr(topics, "_seconds", made_up)
    told = topics.import_time(setting.Setting(tmp_path, None, "cpu", 1, quick=True))
    assert told["ratios"]["ours / torch_and_pyro"]["median"] == 1.5
    imports = ["pyro_vae" in code for code, _ in asked if code.startswith("import time")]
    assert imports == [True, False] * 2 + [False, True]
    caches = [cache for code, cache in asked if '"compiled": true' in code]
    assert len({*caches}) == 2  # a warm one, used twice, and a cold one


def test_the_first_step_is_timed_from_the_imports(tmp_path, toy):
    here = setting.Setting(tmp_path, None, "cpu", 1, quick=True)
    script = FOLDER / "startup.py"
    command = [sys.executable, script, "peers.plain_torch", Job("step", toy).dumps()]
    seconds = topics._seconds(here, command)
    assert seconds > 0.1
    with pytest.raises(WorkerError, match="No module named 'nowhere'"):
        topics._seconds(here, [sys.executable, script, "nowhere", Job("step", toy).dumps()])


def test_every_axis_is_measured(tmp_path, monkeypatch):
    def made_up(here, contenders, job, count):
        names = [c.name for c in contenders]
        return setting.Measured(
            counts={c.name: c.count for c in contenders},
            seconds={c.name: [c.count * (2.0 if c.name == "pyro" else 1.0)] for c in contenders},
            steady=dict.fromkeys(names, 1),
            values={name: [[0.0]] for name in names},
            told={name: {"above_mib": 1.0} for name in names},
        )

    monkeypatch.setattr(setting.Setting, "measure", made_up)
    rows = scaling.scaling(setting.Setting(tmp_path, None, "cpu", 1, quick=True))["rows"]
    axes = ["batch", "latent_dim", "IWAE k", "L_K: K", "L_500: images"]
    assert [row["axis"] for row in rows] == axes
    assert [row["value"] for row in rows] == [16, 2, 1, 50, 10]
    assert all(row["ratios"]["ours / pyro"]["median"] == 0.5 for row in rows)
    # of an evaluation, per sample
    assert [row["seconds"]["ours"]["median"] for row in rows] == [1, 1, 1, 1 / 50, 1 / 500]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_one_sentence(capsys):
    assert bench.main(["--device", "cuda", "--check"]) == 1
    assert capsys.readouterr().err == (
        "expected a CUDA device for --device cuda; torch finds none here: make bench measures the "
        "CPU\n"
    )


def test_quick_figures_do_not_replace_results(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--quick", "--only", "step"])
    said = "expected --results FOLDER with --quick: its figures are none to keep\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_contender_that_fails_is_told(tmp_path, monkeypatch, capsys):
    def fails(here):
        raise WorkerError("expected the contender 'pyro' to answer; got silence")

    monkeypatch.setitem(bench.TOPICS, "step", fails)
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.1, 0.1))
    assert bench.main(["--quick", "--only", "step", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "step: expected the contender 'pyro' to answer; got silence\n"
    )
    assert not list(tmp_path.iterdir())


def test_a_busy_machine_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bench.TOPICS, "step", lambda here: {"what": "nothing"})
    monkeypatch.setattr("os.getloadavg", lambda: (1.7, 0.1, 0.1))
    assert bench.main(["--quick", "--only", "step", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().err == (
        "expected a quiet machine; got a load of 1.7: threads will wait for each other\n"
    )
    assert table.read(tmp_path)["step"]["load_before"] == 1.7
