"""YAML and JSON documents: limits, duplicate keys, and nothing but plain values."""

from __future__ import annotations

import sys

import pytest
import yaml
from run_folders import assert_error

from pyro_vae.config.parser import load_value, read_file
from pyro_vae.core.documents import load_json, load_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)

BAD_YAML = {
    "expanding aliases": (BOMB, r"expected at most 20000 values, aliases expanded; got \d+"),
    "nested aliases": (
        "".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else ''}]\n" for i in range(60)),
        "expected at most 50 nested levels",
    ),
    "an alias of itself": ("a: &a [1, *a]", "line 1 contains itself"),
    "brackets": ("[" * 100_000, "expected at most 50 nested levels"),
    "mappings": ("{a: " * 60, "expected at most 50 nested levels"),
    "many values": ("[" + "1," * 30_000 + "]", "expected at most 20000 values"),
    "many characters": ("x" * 300_000, "expected at most 262144 characters; got 300000"),
    "a long number": ("9" * 5000, "4300 digits"),
    "a date": ("2001-13-01", "month must be in 1..12"),
    "a key twice": ("a: 1\nb: 2\na: 3", "expected every key once; got 'a' twice"),
    "an inner key twice": ("a: {b: 1, c: 2, b: 1}", "expected every key once; got 'b' twice"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_yaml_raises_before_anything_is_built(case, tmp_path, monkeypatch):
    text, message = BAD_YAML[case]
    if case not in ("a long number", "a date"):
        monkeypatch.setattr(
            yaml.SafeLoader, "construct_document", lambda self, node: pytest.fail("built a value")
        )
    with pytest.raises(ValueError, match=message):
        load_yaml(text)
    with pytest.raises(ValueError, match=message):  # on the command line
        load_value(text)
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"expected {file} to be YAML; .*{message}"):
        read_file(file)


def test_ordinary_aliases_and_merged_keys_are_read():
    text = "a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\nd: [*a, *a]"
    a = {"x": 1, "y": 2}
    assert load_yaml(text) == {"a": a, "b": a, "c": {"x": 1, "y": 3}, "d": [a, a]}
    assert load_yaml("") is None


@pytest.mark.parametrize("tag", ["object/apply:os.getcwd []", "name:os.getcwd", "module:colorsys"])
def test_no_tag_names_code(tag):
    sys.modules.pop("colorsys", None)
    with pytest.raises(yaml.YAMLError):
        load_yaml(f"!!python/{tag}")
    assert "colorsys" not in sys.modules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "expected fewer nested levels"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "expected every key once; got 'c' twice"),
        ("{", "Expecting"),
    ],
)
def test_bad_json_raises(text, message):
    with pytest.raises(ValueError, match=message):
        load_json(text)
    assert load_json('{"a": {"b": [1, null]}}') == {"a": {"b": [1, None]}}


def test_values_on_the_command_line_have_the_same_limits(tmp_path, monkeypatch, capsys):
    """jsonargparse reads strings with a parser in C, in which deep nesting ends the process."""
    monkeypatch.chdir(tmp_path)
    for value in ("[" * 100_000, BOMB):
        options = ["--data.name", "digits", "--fit.epochs", value]
        assert_error(capsys, ["fit", "--run", "new", *options], "expected at most .*", tmp_path)
