"""Code and commands in the documents run as written, with smaller numbers."""

from __future__ import annotations

import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.runs.run import Run

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: In the order of their commands: the page of the command line trains the runs of other pages.
FIRST_PAGES = ("README", "docs/reference/command-line", "docs/reference/components")
#: The pages of the site, without those that its build generates.
SITE = sorted(
    str(page.relative_to(ROOT).with_suffix(""))
    for page in DOCS.rglob("*.md")
    if not {"generated", "_build"} & {*page.relative_to(DOCS).parts}
)
#: Pages whose commands do not run here: a program of one's own has a test with its file, and those
#: of papers and studies take hours.
OTHER_PAGES = (
    "docs/how-to/own-program",
    "docs/explanation/reproductions",
    "docs/explanation/studies",
)
#: The pages whose commands run here.
PAGES = [*FIRST_PAGES, *(page for page in SITE if page not in (*FIRST_PAGES, *OTHER_PAGES))]

_ANNEALING = [
    "--annealing.num_chains=2",
    "--annealing.num_temperatures=5",
    "--annealing.num_steps=2",
]
_SHORT_AIS = [option.replace("--annealing", "--estimators.Annealing") for option in _ANNEALING]
#: Options that make a documented command fast.
FAST_OPTIONS = {
    "evaluate": ["--num-data", "40"],
    "infer": ["--num-samples", "60"],
    "anomaly": ["--num-data", "40", "--num-samples", "60"],
    "bdmc": ["--num-data", "3", "--num-samples", "60", *_ANNEALING],
    "gaps": ["--num-data", "3", "--num-steps", "5", "--num-samples", "60", *_ANNEALING],
    "latents": ["--num-data", "40", "--num-draws", "100"],
    "calibrate": [
        *("--num-data", "20", "--num-simulated", "20", "--num-samples", "30"),
        *("--num-replicates", "10", "--false-alarm-rate", "0.5"),
    ],
    "rate-distortion": ["--num-data", "3", *_ANNEALING],
}
VERBS = {
    *("fit", "evaluate", "compare", "report", "explore", "export", *FAST_OPTIONS),
    *("sample", "reconstruct", "interpolate", "traverse", "encode"),
}


def text(page):
    return (ROOT / f"{page}.md").read_text(encoding="utf-8")


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", text(page), re.DOTALL)


def execute(code, scope, replacements=()):
    for old, new in dict(replacements).items():
        assert old in code, (old, code)
        code = code.replace(old, new)
    exec(compile(code, "documentation", "exec"), scope)


def table_structure(printed):
    """The two header lines of a printed table of bounds, and the role of each row by its label."""
    head, columns, *lines = printed.strip().splitlines()
    body = lines[: next(i for i, line in enumerate(lines) if line.startswith(("k̂", "L_k:")))]
    cells = [re.split(r"\s{2,}", line.strip()) for line in body]
    return {"head": head, "columns": columns.split(), **{row[0]: row[-1] for row in cells}}


@pytest.fixture
def trained():
    """The names that the documents' code assumes: a VAE after one epoch, and its data."""
    data = pv.data.load("mnist5k", binarize="dynamic")
    vae = pv.VAE(data.event_shape, latent_dim=2)
    pv.fit(vae, data.train, epochs=1)
    return {"pv": pv, "data": data, "vae": vae}


def test_readme_quick_start(capsys):
    quick_start, own_program, _, own_prior = blocks("README")
    # the site starts with the same lines, without the seed
    (start,) = blocks("docs/index")
    assert {*start.splitlines()} < {*quick_start.splitlines()}
    scope: dict = {}
    code = quick_start.replace("data.train)", "data.train, epochs=1)")
    code = code.replace("data.test, ", "data.test.head(20), num_samples=60, ks=(5, 50), ")
    assert code.count("epochs=1") == code.count("num_samples=60") == 1
    execute(code, scope)
    # the README shows what is printed: the same head, columns, rows and roles
    shown = re.search(r"```\n(\d+ examples.*?)```", text("README"), re.DOTALL)
    assert shown is not None
    recorded = table_structure(shown[1])
    del recorded["L_500"]
    recorded["L_60"] = recorded.pop("L_5000")
    printed = capsys.readouterr().out.replace("20 examples × 60 ", "500 examples × 5000 ")
    assert table_structure(printed) == recorded

    scope |= {"model": scope["vae"].model, "guide": scope["vae"].guide}
    scope["x"] = scope["data"].test.materialize(0)[:7]
    execute(own_program.replace("1000", "60"), scope)
    assert scope["log_w"].shape == (60, 7)
    assert scope["bounds"].elbo < scope["bounds"].log_evidence
    execute(own_prior, scope)
    torch.testing.assert_close(scope["vae"].prior().base_dist.scale, torch.ones(20))


def test_components_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = blocks("docs/reference/components")
    scope: dict = {}
    execute(code, scope, {"epochs=50": "epochs=1", "5000": "60"})
    assert scope["bounds"].iwae.keys() == {5, 50, 60}
    assert scope["bounds"].elbo < scope["bounds"].iwae[60]
    assert (tmp_path / "bounds.nc").is_file()


def test_data_page(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load, queries = blocks("docs/reference/data")
    execute(load, trained)
    execute(queries, trained)
    x, observed, imputed = (trained[name] for name in ("x", "observed", "imputed"))
    assert bool((imputed.x[:, :, observed] == x[:, observed]).all())
    assert bool((trained["score"].value < 0).all())
    assert (tmp_path / "codes.npz").is_file()


def test_estimators_page(trained):
    (code,) = blocks("docs/how-to/estimators")
    fast = {
        "5000": "60",
        "num_steps=100": "num_steps=5",
        "num_temperatures=50": "num_temperatures=5",
    }
    execute(code, trained, fast | {"(20)": "(4)", "vae, 20": "vae, 4", "(200)": "(40)"})
    assert trained["bounds"].estimates["ais"].value > trained["bounds"].elbo
    gap = trained["sandwich"].estimates["bdmc_gap"]
    assert gap.value > -4 * gap.se_monte_carlo
    (code,) = blocks("docs/explanation/errors")
    execute(code, trained)
    assert trained["low"].shape == trained["good"].shape == (4,)


def test_resume_page(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/how-to/resume")
    trained["data"] = replace(trained["data"], train=trained["data"].train.head(200))
    execute(code, trained)
    assert len(trained["history"]) == 3


def test_trackers_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for code in blocks("docs/how-to/trackers"):
        execute(code, scope)
    assert [*tmp_path.rglob("metrics.csv")]


def test_calibration_page(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained["data"] = replace(trained["data"], test=trained["data"].test.head(30))
    check, statistic, plots = blocks("docs/how-to/calibration")
    execute(check, trained, {"300": "20", "1000": "30"})
    assert trained["result"].verdicts["guide"].keys() > {"z[0]", "z[1]", "tarp"}
    assert Path("ranks.svg").stat().st_size > 5000
    execute(statistic, trained)
    execute(plots.replace('"matplotlib"', '"none"'), trained)


def test_report_page(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained["data"] = replace(trained["data"], test=trained["data"].test.head(30))
    (code,) = blocks("docs/how-to/report")
    execute(code, trained, {"5000": "60", "epochs=5": "epochs=1"})
    left, middle, right = trained["figure"].axes
    assert list(left.lines[0].get_ydata()) == trained["history"]["elbo"]
    assert list(middle.lines[0].get_ydata()) == [*trained["bounds"].iwae.values()]
    assert len(right.patches) == 2 and Path("vae.svg").stat().st_size > 10_000


def test_own_data_page(documented_files, capsys):
    objects, load, results, open_run = blocks("docs/how-to/own-data")
    execute(objects, {"pv": pv})
    assert capsys.readouterr().out.splitlines() == [
        "tensor([0, 1, 0, 1]) ('a', 'b')",
        "tensor([ 1, -1,  0])",
    ]
    execute(load, {"pv": pv})
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["pressure: real", "weight: real"] and out[2].startswith("('a', 'b') tensor")
    for run in ("runs/patients", "runs/columns"):
        assert main([*fit_of(run), "--fit.epochs", "1"]) == 0
    capsys.readouterr()
    scope = {"pv": pv}
    execute(results, scope)
    rows = pv.load("runs/columns").data.test.rows.tolist()
    assert list(scope["scores"]["row"]) == rows
    assert capsys.readouterr().out.startswith(f"{{{rows[0]}: ")
    execute(open_run, {"pv": pv})
    assert capsys.readouterr().out == "True 5\n"


def test_own_program_page(capsys):
    first, arguments, mixture, _ = blocks("docs/how-to/own-program")
    scope: dict = {}
    fast = {"epochs=20": "epochs=2", "data.test, reliable=True": "data.test, num_samples=30"}
    execute(first, scope, fast)
    # the mean of q(z|x) of the trained encoder
    x = scope["data"].test.materialize(0)
    with torch.no_grad():
        mean = scope["encoder"](x.reshape(-1, 64))[:, :4]
    np.testing.assert_allclose(scope["codes"]["z.mean"], mean.numpy(), atol=1e-5)
    execute(arguments, scope, {"epochs=5": "epochs=1"})
    # a fifth of the pixels does not count
    full = pv.evaluate((scope["model"], scope["guide"]), scope["x"][:100], num_samples=100)
    assert scope["bounds"].elbo == pytest.approx(0.8 * full.elbo, rel=0.05)
    execute(mixture, scope)
    assert "100 examples × 200 samples" in capsys.readouterr().out


def test_own_program_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tutorial.py").write_text(blocks("docs/how-to/own-program")[-1], encoding="utf-8")
    fit, evaluate = re.findall("^pyro-vae .*$", text("docs/how-to/own-program"), re.MULTILINE)
    assert main([*fit.split()[1:], "--fit.epochs", "1"]) == 0
    run, *plugin = evaluate.split()[2:5]
    fast = ["--num-samples", "100", "--num-data", "20"]
    assert main([*evaluate.split()[1:], *fast]) == 0
    assert "log p̂ from: " in capsys.readouterr().out
    # the model takes no size, so that it samples examples like zeros of the shape of the data
    assert main(["sample", run, *plugin, "--output", "new.npz", "--num-samples", "30"]) == 0
    x = np.load("new.npz")["x"]
    assert x.shape == (30, 1, 8, 8) and set(np.unique(x)) == {0.0, 1.0}
    assert main(["bdmc", run, *plugin, *FAST_OPTIONS["bdmc"]]) == 0
    assert main(["report", run, *plugin]) == 0


def test_interop_page(capsys):
    own, other, *blocks_of_libraries = blocks("docs/how-to/interop")
    scope: dict = {}
    fast = {"test\n": "test.head(3)\n", "x, reliable=True": "x, num_samples=60, ks=(5,)"}
    execute(own, scope, fast)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the dependencies of pythae
        pytest.importorskip("pythae")
        import pythae.models  # noqa: F401
    execute(other, scope, {"program, x": "program, x, num_samples=60, ks=(5,)"})
    assert capsys.readouterr().out.count("3 examples × 60 samples") == 2
    for code in blocks_of_libraries:
        compile(code, "documentation", "exec")


def test_questions_and_answers(capsys):
    """The code of all answers runs in order, as one script."""
    answers = text("docs/faq").split("\n### ")[1:]
    assert len(answers) >= 20
    assert all(re.search(r"\]\(https://github.com/\S+/(issues|pull)/\d+\)", a) for a in answers)
    code = "".join(blocks("docs/faq"))
    fast = {
        "epochs=20": "epochs=1",
        "epochs=10)": "epochs=1)",
        "head(40)": "head(20)",
        "num_samples=1000": "num_samples=60",
        "num_samples=200": "num_samples=60",
        "num_simulated=60, num_samples=100": "num_simulated=20, num_samples=30",
        "num_temperatures=100, num_steps=5": "num_temperatures=5, num_steps=2",
        "vae, 20, ": "vae, 3, ",
        "head(100)": "head(40)",
        "m=4, k=8": "m=2, k=2",
    }
    execute(code, {}, fast)
    assert "Bernoulli scores only 0/1; got 17 levels" in capsys.readouterr().out


def commands(page):
    """The blocks of commands of a page: lists of the arguments of ``pyro-vae``."""
    found = []
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    for block in (block for language, block in fenced if not language):
        lines = [line.split("#")[0].split() for line in block.splitlines()]
        ours = [line[1:] for line in lines if line[:1] == ["pyro-vae"]]
        found.append([args for args in ours if "runs/mnist_vae" not in args])
    return [block for block in found if block]


BLOCKS = {f"{page}-{i}": block for page in PAGES for i, block in enumerate(commands(page))}


def fit_of(run):
    """The first documented command that trains a run."""
    fits = (args for block in BLOCKS.values() for args in block if args[0] == "fit")
    return next(args for args in fits if args[args.index("--run") + 1] == run)


@pytest.fixture
def documented_files(tmp_path, monkeypatch):
    """The YAML and Python files of the commands in an empty folder, with one short epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (config,) = blocks("docs/reference/components", "yaml")
    _, plugin = blocks("docs/reference/components")
    assert plugin.startswith("# my_priors.py\n") and config.startswith("# vamp.yaml\n")
    Path("my_priors.py").write_text(plugin, encoding="utf-8")
    Path("experiments").mkdir()
    demo = (ROOT / "experiments" / "demo.yaml").read_text(encoding="utf-8")
    # 150 and 50 epochs on 4050 digits, shortened
    for file, settings, epochs in (
        ("vamp.yaml", config, "epochs: 50"),
        ("experiments/demo.yaml", demo, "epochs: 150"),
    ):
        assert epochs in settings and "dynamic}" in settings
        short = settings.replace(epochs, "epochs: 1").replace("dynamic}", "dynamic, valid: 4400}")
        Path(file).write_text(short, encoding="utf-8")
    _make_own_files()


def _make_own_files():
    """The folder of pictures and the tables of docs/how-to/own-data."""
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (Path("pictures") / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(f"pictures/{name}/{i}.png")
    for file, count in (("patients.csv", 40), ("new.csv", 5)):
        rows = [f"n{i},{120 + i}.5,{70 - i}.25,{'ab'[i % 2]}" for i in range(count)]
        Path(file).write_text("\n".join(["name,pressure,weight,group", *rows]), encoding="utf-8")


def shorten(args):
    """Add options that make a command fast."""
    short = ["60" if argument == "5000" else argument for argument in args]
    if "--fit.epochs" in short:
        short[short.index("--fit.epochs") + 1] = "2"
    elif args[0] == "fit" and not {"--config", "--resume"} & {*args}:
        short += ["--fit.epochs", "2"]
    short += FAST_OPTIONS.get(args[0], [])
    if args[0] == "evaluate" and "--num-samples" not in short:
        short += ["--num-samples", "60"]
    if "--reliable" in args:
        # the mixture of a VampPrior is expensive
        short[short.index("40")] = "3"
        short += ["--estimators.Ladder.laplace.num_samples", "50"]
    return short + (_SHORT_AIS if "Annealing" in args else [])


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory):
    """Copies of the runs that more than one block uses."""
    return tmp_path_factory.mktemp("trained")


def provide(run, trained_runs):
    """Train a run of another block, or copy it if it was trained before."""
    if (trained_runs / run).exists():
        shutil.copytree(trained_runs / run, run)
    else:
        assert main(shorten(fit_of(run))) == 0
        shutil.copytree(run, trained_runs / run)


@pytest.mark.parametrize("block", BLOCKS)
def test_commands(block, documented_files, trained_runs, capsys):
    """The commands of a block run in order, after those that train the runs of other blocks."""
    for args in BLOCKS[block]:
        runs = {argument for argument in args if argument.startswith("runs/")}
        if args[0] == "fit" and "--resume" not in args:
            runs.remove(args[-1])
        for run in runs:
            if not Path(run).exists():
                provide(run, trained_runs)
            if args[0] == "compare" and not (Path(run) / "bounds.nc").exists():
                assert main(["evaluate", run, "--num-samples", "60", "--num-data", "40"]) == 0
        assert main(shorten(args)) == 0, (args, capsys.readouterr().err)
    if block == "docs/how-to/export-0":
        (code,) = blocks("docs/how-to/export")
        scope: dict = {}
        execute(code, scope)
        assert scope["iwae"].shape == (7,) and scope["codes"].shape == (7, 20)
        assert bool((scope["iwae"] > scope["log_w"].mean(0)).all())
    codes = [code for code in blocks(block.rpartition("-")[0]) if "pv.compare" in code]
    if codes and "compare" in [args[0] for args in BLOCKS[block]]:
        execute(codes[0], {"pv": pv})
        assert "log p̂ − first" in capsys.readouterr().out


def test_every_verb_has_a_command():
    assert {args[0] for block in BLOCKS.values() for args in block} == VERBS


def has_heading(page, anchor):
    """Whether a heading of a page has this anchor."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}
    return anchor in slugs


def test_links_and_pages():
    """Every relative link in the documents names a file, and every anchor a heading."""
    site = [ROOT / f"{page}.md" for page in SITE]
    for page in [*ROOT.glob("*.md"), *site, ROOT / "experiments" / "README.md"]:
        content = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", content):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            assert target.exists(), (page.name, link)
            if anchor:
                assert has_heading(target, anchor), (page.name, link)


def test_links_of_messages():
    """Every page that a message names exists, with the heading, and is named by the helper."""
    sources = "".join(f.read_text(encoding="utf-8") for f in (ROOT / "pyro_vae").rglob("*.py"))
    links = set(re.findall(r"\bsee\([\"']([^\"']+)[\"']\)", sources))
    assert "docs/how-to/read-khat.md" in links and len(links) >= 6
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        assert not anchor or has_heading(ROOT / path, anchor), link
    # all calls have a literal, and nothing links without the helper
    assert len(re.findall(r"\bsee\(", sources)) - 1 == len(
        re.findall(r"\bsee\([\"'][^\"']+[\"']\)", sources)
    )


def test_links_to_tutorials():
    tutorials = {file.stem for file in (DOCS / "tutorials").glob("*.py")}
    assert len(tutorials) == 7
    texts = [text(page) for page in SITE]
    texts += [file.read_text(encoding="utf-8") for file in (DOCS / "tutorials").glob("*.py")]
    linked = {name for t in texts for name in re.findall(r"generated/tutorials/(plot_\w+)", t)}
    assert linked <= tutorials


def test_code_of_every_page_is_tested():
    """Every page with Python has a test, but that of several processes (``torchrun``)."""
    files = (Path(__file__), Path(__file__).parent / "report" / "test_explorer.py")
    tested = "".join(file.read_text(encoding="utf-8") for file in files)
    for page in SITE:
        if blocks(page) and page not in ("docs/how-to/distributed", FIRST_PAGES[1]):
            assert f'blocks("{page}"' in tested or f"{page}.md" in tested, page


def test_readme_is_one_page():
    assert len(text("README").splitlines()) <= 150


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_experiment_runs(file, tmp_path, real_data):
    name = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]["name"]
    valid = {"mnist": 59_000, "mnist5k": 4_000, "frey": 200}[name]
    run = Run(tmp_path / "run")
    args = ["--fit.epochs", "1", "--data.valid", str(valid), "--run", str(run.folder)]
    assert main(["fit", "--config", str(file), *args]) == 0
    args = ["--num-samples", "50", "--num-data", "20"]
    assert main(["evaluate", str(run.folder), *args]) == 0
    assert main(["report", str(run.folder)]) == 0
    assert run.report.is_file()
