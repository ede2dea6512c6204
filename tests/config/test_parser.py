"""Options derived from signatures: command lines, help pages and one sentence for every error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from pyro_vae.cli import parsers
from pyro_vae.config.signatures import check_value, document_arguments, signature_options
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
        ("x --ks [a]", "expected ks to be a list; got '[a]'"),
        ("x --tolerance", "expected a value after --tolerance; got nothing"),
        ("x --annealing 3", "expected annealing to be a mapping of options; got '3'"),
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
    assert "two numbers. (default: [5, 50])" in text
    assert "--annealing.num_steps NUM_STEPS" in text and "(default: 3)" in text


@pytest.mark.parametrize(
    ("hint", "value", "types"),
    [
        (int, True, "an integer"),
        (int, 1.0, "an integer"),
        (str, 3, "a string"),
        (tuple[float, float], [1], "a list of length 2"),
        (list[int], 3, "a list"),
        (bool, 1, "true or false"),
        (float | Literal["a", "b"] | None, "c", "a number, a, b or null"),
    ],
)
def test_values_of_another_type(hint, value, types):
    with pytest.raises(ValueError, match=f"expected name to be {types}; got "):
        check_value(hint, value, "name")


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
    class Base:
        def __init__(self, a: int, b: int = 2) -> None: ...

    class Derived(Base):
        def __init__(self, c: int, **kwargs: Any) -> None: ...

    assert [o.name for o in signature_options(Derived)] == ["c", "a", "b"]
