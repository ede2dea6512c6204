"""What every test starts from: a fixed seed, an empty parameter store, real data if there are."""

from __future__ import annotations

import os
from pathlib import Path

import pyro
import pytest
import streams

_NEIGHBOUR = Path(__file__).parents[2] / "shared" / "data"
if "PYRO_VAE_DATA" not in os.environ and _NEIGHBOUR.is_dir():
    os.environ["PYRO_VAE_DATA"] = str(_NEIGHBOUR)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    streams.move(item.get_closest_marker("recorded_seed") is None)


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def real_data() -> Path:
    """The folder of real MNIST and Frey Face."""
    folder = Path(os.environ.get("PYRO_VAE_DATA", ""))
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip("PYRO_VAE_DATA names no folder with MNIST")
    return folder
