"""Fixtures of all tests: a fixed seed, an empty parameter store, and real data if available."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyro
import pytest
import streams

_SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
if "PYRO_VAE_DATA" not in os.environ and _SHARED_DATA.is_dir():
    os.environ["PYRO_VAE_DATA"] = str(_SHARED_DATA)


def pytest_configure() -> None:
    """Restore the handlers of signals that the caller ignores.

    A script ignores SIGINT in its background processes, and ``nohup`` SIGHUP.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    streams.enable_offset(item.get_closest_marker("recorded_seed") is None)


@pytest.fixture(autouse=True)
def clean_state():
    """Clear the parameter store and set the seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def real_data() -> Path:
    """Folder with MNIST and Frey Face."""
    folder = Path(os.environ.get("PYRO_VAE_DATA", ""))
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip("no MNIST in the folder PYRO_VAE_DATA")
    return folder
