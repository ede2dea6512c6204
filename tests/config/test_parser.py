"""Options derived from signatures: command lines, help pages and one sentence for every error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from pyro_vae.cli import parsers
from pyro_vae.config.signatures import convert, describe_type, document_arguments
from pyro_vae.evaluation import Annealing

ANNEALING = Annealing(num_steps=3)


def sample(
    run: Path,
    *,
    split: Literal["test", "valid"] = "test",
    num_data: int | None = None,
    ks: Sequence[int] = (5, 50),
    ais: bool = False,
    tolerance: float | None = None,
    annealing: Annealing = ANNEALING,
) -> Any:
    """Generate examples.

    Arguments:
        run: folder of a run.
        split: the ``split``, in 50 %
            of all cases.
        ks, tolerance: two numbers.
    """
    return run, split, num_data, ks, ais, tolerance, annealing


DEFAULTS = (Path("x"), "test", None, [5, 50], False, None, ANNEALING)


@pytest.mark.parametrize(
    ("args", "changes"),
    [
        ("x", {}),
        ("x --num-data 3 --ais", {2: 3, 4: True}),
        ("--ais x --num_data=3", {2: 3, 4: True}),
        ("x --ais false --tolerance 1e-3 --ks [7]", {3: [7], 5: 1e-3}),
        ("x --num-data 3 --num-data null", {}),
        ("x --annealing.num_chains 2", {6: Annealing(num_chains=2, num_steps=3)}),
    ],
)
def test_arguments(args, changes):
    expected = tuple(changes.get(i, value) for i, value in enumerate(DEFAULTS))
    assert parsers.call(sample, args.split()) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "expected run; got nothing: see `pyro-vae sample --help`"),
        ("x y", "expected only options and their values; got unexpected 'y'"),
        ("x --spilt test", "unknown option --spilt; did you mean --split?"),
        ("x --numdata 3", "unknown option --numdata; did you mean --num-data?"),
        ("x --num-steps 3", "unknown option --num-steps; did you mean --annealing.num_steps?"),
        ("x --ais.num_steps 3", "unknown option --ais.num_steps; did you mean --annealing.num_st"),
        ("x --annealing.num_step 3", "unknown option --annealing.num_step; did you mean --ann"),
        ("x --split tset", "expected split to be test or valid; got 'tset'; did you mean test?"),
        ("x --num-data 1.5", "expected num_data to be an integer or null; got '1.5'"),
        ("x --num-data true", "expected num_data to be an integer or null; got 'true'"),
        ("x --ks [a]", "expected ks to be a list of integers; got '[a]'"),
        ("x --tolerance", "expected a value after --tolerance; got nothing"),
        ("x --annealing 3", "expected annealing to be a mapping of options; got 3"),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError) as error:
        parsers.call(sample, args.split())
    assert str(error.value).startswith(message)


def test_help(capsys):
    with pytest.raises(SystemExit) as exited:
        parsers.call(sample, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert exited.value.code == 0 and "usage: pyro-vae sample run [--OPTION VALUE ...]" in text
    assert "--split {test,valid} the split, in 50 % of all cases. (default: test)" in text
    assert "--ks [X,...] two numbers. (default: [5, 50])" in text
    assert "--annealing.num_steps N" in text and "(default: 3)" in text


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int | float, "1", 1),
        (int | float, "0.5", 0.5),
        (int | str, "3", 3),
        (int | str, "three", "three"),
        (str | None, "null", None),
        (float, 1, 1.0),
        (float, "1e-8", 1e-8),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[float, float] | None, "[0, 1]", (0.0, 1.0)),
        (list[float], "[1e-3, 2]", [1e-3, 2.0]),
        (float | Literal["learned"], "learned", "learned"),
        (Literal["none", "all"], "none", "none"),
        (bool | None, "false", False),
    ],
)
def test_values(hint, value, expected):
    found = convert(hint, value)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value"),
    [(int, True), (int, 1.0), (str, 3), (tuple[float, float], [1]), (list[int], 3), (bool, 1)],
)
def test_values_of_another_type(hint, value):
    with pytest.raises(ValueError):
        convert(hint, value)


def test_types_are_described_in_plain_words():
    assert describe_type(float | Literal["a", "b"] | None) == ["a number", "a", "b", "null"]
    assert describe_type(list[int]) == ["a list of integers"]


def test_arguments_of_a_class_are_inherited():
    class Base:
        """A base.

        Args:
            a (int, optional): first: it has
                two lines. Default: 3
        """

    class Derived(Base):
        """More.

        Attributes:
            b: second.

        Raises:
            c: not an argument.
        """

    assert document_arguments(Derived) == {
        "a": "first: it has two lines. Default: 3",
        "b": "second.",
    }


def test_keyword_arguments_of_a_base_class():
    from pyro_vae.config.signatures import signature_options

    class Base:
        def __init__(self, a: int, b: int = 2) -> None: ...

    class Derived(Base):
        def __init__(self, c: int, **kwargs: Any) -> None: ...

    assert [o.name for o in signature_options(Derived)] == ["c", "a", "b"]
