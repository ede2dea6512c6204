"""What the documents and the experiments show runs as written, only shorter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pyro_vae.cli.app import main
from pyro_vae.runs.run import Run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

_WALK = ["--annealing.num_chains=2", "--annealing.num_temperatures=5", "--annealing.num_steps=2"]
#: Further words that make a command of the README short.
SHORTER = {
    "evaluate": ["--num-data", "40"],
    "bdmc": ["--num-data", "3", "--num-samples", "60", *_WALK],
    "gaps": ["--num-data", "3", "--num-steps", "5", "--num-samples", "60", *_WALK],
    "latents": ["--num-data", "40", "--num-draws", "100"],
    "rate-distortion": ["--num-data", "3", *_WALK],
}


def _blocks(document):
    return re.findall(r"```python\n(.*?)```", document, re.DOTALL)


def test_the_readme_s_python(tmp_path, monkeypatch):
    block, uses, rulers, _ = _blocks(README)
    monkeypatch.chdir(tmp_path)
    shorter = block.replace("epochs=50", "epochs=1").replace("5000", "60")
    scope: dict = {}
    exec(compile(shorter, "README.md", "exec"), scope)
    assert scope["bounds"].iwae.keys() == {5, 50, 60}
    assert scope["bounds"].elbo < scope["bounds"].iwae[60]
    assert (tmp_path / "bounds.nc").is_file()
    exec(compile(uses, "README.md", "exec"), scope)
    x, seen, guess = (scope[name] for name in ("x", "seen", "guess"))
    assert bool((guess.x[:, :, seen] == x[:, seen]).all())
    assert bool((scope["score"].value < 0).all())
    assert (tmp_path / "codes.npz").is_file()
    shorter = rulers.replace("5000", "60").replace("num_steps=100", "num_steps=5")
    shorter = shorter.replace("num_temperatures=50", "num_temperatures=5").replace("20", "4")
    exec(compile(shorter, "README.md", "exec"), scope)
    assert scope["judged"].estimates["ais"].value > scope["judged"].elbo
    gap = scope["enclosed"].estimates["bdmc_gap"]
    assert gap.value > -4 * gap.se_monte_carlo


def test_the_readme_s_commands(tmp_path, monkeypatch, capsys):
    (config,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # the README's run of 50 epochs on 4050 digits, shortened
    Path("vamp.yaml").write_text(
        config.replace("epochs: 50", "epochs: 1").replace("dynamic}", "dynamic, valid: 4400}"),
        encoding="utf-8",
    )
    *_, plugin = _blocks(README)
    assert plugin.startswith("# my_priors.py\n")
    Path("my_priors.py").write_text(plugin, encoding="utf-8")
    lines = [n for n in README.splitlines() if n.startswith("pyro-vae ") and "experiments" not in n]
    ran = set()
    for line in lines:
        words = line.split("#")[0].replace("5000", "60").split()[1:]
        if "runs/mnist_vae" in line or "runs/frey_vae" in line:
            continue
        words += SHORTER.get(words[0], [])
        if {"--ais", "--escalate"} & {*words}:
            words += _WALK
        if words[0] == "compare":
            main(["evaluate", "runs/mog", "--num-samples", "60", "--num-data", "40"])
        assert main(words) == 0, (line, capsys.readouterr().err)
        ran.add(words[0])
    assert ran == {
        *("fit", "evaluate", "compare", "report", *SHORTER),
        *("sample", "reconstruct", "interpolate", "traverse", "infer", "anomaly", "encode"),
    }


@pytest.mark.parametrize(
    "file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_experiment_runs(file, tmp_path, real_data):
    name = yaml.safe_load(file.read_text(encoding="utf-8"))["data"]["name"]
    valid = {"mnist": 59_000, "mnist5k": 4_000, "frey": 200}[name]
    run = Run(tmp_path / "run")
    words = ["--fit.epochs", "1", "--data.valid", str(valid), "--run", str(run.folder)]
    assert main(["fit", "--config", str(file), *words]) == 0
    words = ["--num-samples", "50", "--num-data", "20"]
    assert main(["evaluate", str(run.folder), *words]) == 0
    assert main(["report", str(run.folder)]) == 0
    assert run.report.is_file()
