"""The examples: short, stand-alone, and right about what they show."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
FILES = sorted(FOLDER.glob("*.py"))
#: log p(x) of 64 pixels that are 0 or 1 with probability ½, which any trained model exceeds.
COIN_FLIPS = -64 * math.log(2)


def run(name, **budget):
    """Return the result of an example's ``main``."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(**budget)


def numbers(line):
    return [float(value) for value in re.findall(r"[+-]?\d+\.\d+", line.replace("−", "-"))]


def test_all_examples_exist():
    names = ("iwae", "judge_a_model", "own_data", "own_program", "swap_prior", "vae")
    assert tuple(file.stem for file in FILES) == names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_examples_are_short_and_use_the_public_names(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    tree = ast.parse(text)
    assert f"    python examples/{file.name}\n" in ast.get_docstring(tree)
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {n.names[0].name if isinstance(n, ast.Import) else n.module for n in imports}
    assert {name for name in names if name.startswith("pyro_vae")} == {"pyro_vae"}
    assert {n.split(".")[0] for n in names} <= {
        *("pyro_vae", "pyro", "torch", "sklearn", "functools", "math", "numpy", "PIL"),
        *("csv", "random", "tempfile", "pathlib"),
    }
    attributes = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    assert not [name for name in attributes if name.startswith("_") and name != "__init__"]


def test_vae(capsys):
    bounds = run("vae", epochs=2, num_data=20, num_samples=50)
    values = [bounds.elbo, *bounds.iwae.values()]
    assert list(bounds.iwae) == [5, 50] and values == sorted(values)
    printed = capsys.readouterr().out
    (training,) = [line for line in printed.splitlines() if line.startswith("training ELBO")]
    first, last = numbers(training)
    assert first < last
    table, pictures = printed.split("Means of p(x|z)")
    assert f"{bounds.elbo:.3f}" in table
    # fourteen rows of five digits, with some ink
    *_, rows = pictures.partition(":\n")
    lines = rows.rstrip("\n").splitlines()
    assert len(lines) == 14 and {len(line) for line in lines} == {5 * 28 + 4 * 2}
    assert set(rows) & set("=+*#%@")


def test_swap_prior(capsys):
    results = run("swap_prior", epochs=8, num_data=30, num_samples=20)
    assert len(results) == 4 and all(COIN_FLIPS < value < 0 for value in results.values())
    rows = [numbers(line) for line in capsys.readouterr().out.splitlines()[1:]]
    baseline = rows[0][0]
    for value, difference, error in rows:
        assert value - baseline == pytest.approx(difference, abs=0.011)
        assert (error == 0) == (difference == 0 and value == baseline)


def test_iwae(capsys):
    plain, weighted = run("iwae", epochs=15, k=10, num_data=50, num_samples=50).values()
    for bounds in (plain, weighted):
        assert COIN_FLIPS < bounds.elbo < bounds.log_evidence < 0
    # the encoder that is trained for k attempts is worse in a single one
    assert weighted.gap > plain.gap
    rows = [numbers(line) for line in capsys.readouterr().out.splitlines()[2:]]
    for (elbo, bound, gap), bounds in zip(rows, (plain, weighted), strict=True):
        assert elbo == pytest.approx(bounds.elbo, abs=0.006)
        assert bound - elbo == pytest.approx(gap, abs=0.02)


def test_own_program(capsys):
    results = run("own_program", epochs=8, num_data=20, num_samples=100)
    for bounds in results.values():
        values = [bounds.elbo, *bounds.iwae.values()]
        assert list(bounds.iwae) == [5, 50, 100] and values == sorted(values)
        assert not bounds.unreliable.any()
    # the same decoder: log p̂ is that of the model, and does not depend on the guide
    encoder, auto = results["encoder"], results["AutoNormal"]
    assert encoder.elbo > COIN_FLIPS and encoder.elbo != auto.elbo
    difference = encoder.per_datum["log_evidence"] - auto.per_datum["log_evidence"]
    errors = [bounds.per_datum["log_evidence_variance"] for bounds in (encoder, auto)]
    assert abs(difference.mean()) < 5 * math.sqrt(sum(errors).sum()) / len(encoder)
    # −5.8 nats is log p of independent normals with the variance of each step
    assert results["series"].elbo > -5.8
    assert [line for line in capsys.readouterr().out.splitlines() if line in results] == [*results]


@pytest.mark.recorded_seed  # the split decides the first number
def test_own_data(capsys):
    results = run("own_data", epochs=100, count=150)
    printed = capsys.readouterr().out
    assert "classes: blue, red" in printed and "columns: pressure: real, weight: real" in printed
    *_, pictures, table = printed.splitlines()
    assert numbers(pictures)[0] == round(results["pictures"], 2)
    assert numbers(table)[0] == round(results["table"], 2)
    # log p of independent standard normals is −2.84 nats on average; the true density has −1.91
    assert -2.5 < results["table"] < -1.4
    # 192 independent uniform levels
    assert results["pictures"] > -192 * math.log(256)


def test_judge_a_model(capsys):
    budget = {"epochs": 20, "num_data": 6, "num_samples": 200, "effort": 10}
    bounds, gaps = run("judge_a_model", **budget)
    assert bounds.elbo < bounds.log_evidence
    parts = [gaps.estimates[name].value for name in ("approximation", "amortisation")]
    assert sum(parts) == pytest.approx(gaps.estimates["total"].value)
    first, *_, verdict = capsys.readouterr().out.strip().splitlines()
    # the loss of six digits, with one sample each, is minus the ELBO
    assert numbers(first)[0] == pytest.approx(-bounds.elbo, abs=4)
    ais = bounds.estimates["ais"].value
    assert numbers(verdict)[0] == pytest.approx(ais - bounds.log_evidence, abs=6e-4)
