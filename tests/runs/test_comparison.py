"""Comparison of runs that were evaluated with different settings."""

from __future__ import annotations

import shutil

import pytest
from run_folders import TINY

import pyro_vae as pv
from pyro_vae.cli.app import main
from pyro_vae.runs.comparison import paired_difference
from pyro_vae.runs.run import Run

FORTY = ["--num-data", "40"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run evaluated with K = 100 on 40 examples of the test set."""
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "tiny.yaml").write_text(TINY)
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--run", str(folder / "a")]) == 0
    assert main(["evaluate", str(folder / "a"), "--num-samples", "100", *FORTY]) == 0
    return folder / "a"


def compare_with(first, *options):
    """Evaluate a copy of the run with other options; return it, its row and the sentences below."""
    copy = first.parent / "b"
    if copy.exists():
        shutil.rmtree(copy)
    shutil.copytree(first, copy)
    size = [] if "--num-data" in options else FORTY
    assert main(["evaluate", str(copy), *options, *size]) == 0
    _, _, row, units, *sentences = pv.compare(first, copy).splitlines()
    assert units == "nats per datum, higher is better"
    return copy, row, sentences


@pytest.mark.parametrize(
    ("options", "short", "texts"),
    [
        (
            ["--num-samples", "500"],
            "K differs",
            ["K = 500 instead of K = 100 (log p̂ = L_K rises with K)"],
        ),
        (
            ["--num-samples", "800", "--estimators.AdaptiveSamples.tolerance", "0.2"],
            "K differs",
            ["(tolerance 0.2) instead of K = 100"],
        ),
        (
            ["--num-samples", "100", "--reliable", "--estimators.Ladder.annealing", "null"],
            "K differs",
            ["a ladder instead of K = 100 (log p̂ = L_K rises with K)"],
        ),
        (
            ["--num-samples", "100", "--split", "valid"],
            "other data",
            ["split valid instead of test"],
        ),
        (
            ["--num-samples", "200", "--num-data", "20", "--seed", "3"],
            "other data",
            ["seed 3 instead of 0", "20 examples instead of 40", "K = 200 instead of K = 100"],
        ),
    ],
    ids=["samples", "tolerance", "ladder", "split", "several"],
)
def test_sentences_name_every_setting_that_differs(first, options, short, texts):
    copy, row, (sentence,) = compare_with(first, *options)
    assert row.endswith(short)
    assert paired_difference(Run(copy), Run(first)) is None
    assert sentence.startswith("log p̂ of b cannot be compared with that of a: ")
    assert sentence.endswith("Evaluate both with the same settings on the same data.")
    parts = sentence.split(": ", 1)[1].split("; ")
    assert len(parts) == len(texts)
    for part, text in zip(parts, texts, strict=True):
        assert text in part


def test_equal_settings_need_no_sentence(first):
    _, row, sentences = compare_with(first, "--num-samples", "100")
    assert sentences == []
    assert row.split()[-2:] == ["0.000", "0.000"]


def test_ladders_are_comparable_whatever_the_numbers_of_samples(first):
    options = ["--estimators.Ladder.annealing", "null", "--num-data", "20"]
    other = first.parent / "c"
    shutil.copytree(first, other)
    assert main(["evaluate", str(other), "--num-samples", "50", *options]) == 0
    copy = first.parent / "b"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(first, copy)
    assert main(["evaluate", str(copy), "--num-samples", "100", *options]) == 0
    mean, error = paired_difference(Run(copy), Run(other))
    difference = Run(copy).read_bounds().log_evidence - Run(other).read_bounds().log_evidence
    assert mean == pytest.approx(difference) and error < 0.2
    shutil.rmtree(other)


def test_precision_is_named_beside_the_difference(first):
    copy, _, (sentence,) = compare_with(first, "--num-samples", "100", "--precision", "bfloat16")
    assert sentence.startswith(
        "b was evaluated with precision bfloat16, the other with float32: its correction adds "
    )
    assert paired_difference(Run(copy), Run(first)) is not None
