"""Short text and HTML of results, programs and histories, and their plots."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import ModuleType

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from tqdm import tqdm

import pyro_vae as pv
from pyro_vae.core.progress import progress_bar


@pytest.fixture(scope="module")
def program():
    return LinearGaussian(2, shift=0.3, inflate=1.2)


@pytest.fixture(scope="module")
def bounds(program):
    return pv.evaluate(program, program.sample(20), num_samples=1000, ks=(5, 50, 500))


@pytest.fixture(scope="module")
def latents(program):
    return pv.latents(program, program.sample(30), num_samples=8, num_draws=60)


class Tags(HTMLParser):
    """The text of the cells of all tables, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_bounds_are_shown_in_ten_lines_with_all_numbers(bounds):
    lines = repr(bounds).splitlines()
    assert len(lines) <= 10 and len(repr(bounds)) < 800
    assert lines[0] == str(bounds).splitlines()[0]
    # ELBO, the tightest L_k and the gap; all of them are rows of the full table
    assert {*lines} < {*str(bounds).splitlines()} and "L_5 " in str(bounds)
    labels = [line.split("  ")[0] for line in lines[2:5]]
    assert labels == ["ELBO", "log p̂ = L_1000", "log p̂ − ELBO"]
    cells = Tags(bounds._repr_html_()).cells
    for row in bounds.estimates.values():
        assert f"{row.value:.3f}" in cells and f"{row.se_data:.3f}" in cells


def test_a_warning_is_in_every_representation():
    program = LinearGaussian(2, shift=6.0)
    flagged = pv.evaluate(program, program.sample(10), num_samples=200)
    assert flagged.warning and flagged.warning in repr(flagged)
    assert re.search(r'class="warning".*too heavy-tailed', flagged._repr_html_())


def test_html_is_escaped(bounds):
    proposals = {"settings": {"proposals": ["<b>"]}}
    data = bounds.per_datum | {"proposal": np.zeros(20), "guide_khat": bounds.per_datum["khat"]}
    data["guide_ess"] = bounds.per_datum["ess"]
    text = replace(bounds, per_datum=data, **proposals)._repr_html_()
    assert "<b>" not in text
    Tags(text)


def test_latents_are_short_and_their_units_sorted(latents):
    assert len(repr(latents).splitlines()) <= 10
    rate = latents.divergences.estimates["rate"]
    assert f"{rate.value:.3f}" in repr(latents) and "active units" in repr(latents)
    # its KL is not a sum over units
    variance = np.sort(latents.active.variance["z"])[::-1]
    axes = latents.plot()
    assert [bar.get_height() for bar in axes.patches] == variance.tolist()
    with pytest.raises(ValueError, match=r"a latent site with units \(z\); got 'y'"):
        latents.plot("y")


def test_plots_draw_on_given_axes_and_leave_pyplot_alone(bounds, latents):
    before = dict(plt.rcParams)
    figure = Figure()
    ours = figure.subplots(1, 3)
    history = pv.History([{"epoch": i, "elbo": float(i), "seconds": 1.0} for i in (1, 2, 3)])
    drawn = [r.plot(ax=ax) for r, ax in zip((bounds, latents, history), ours, strict=True)]
    assert drawn == list(ours) and len(figure.axes) == 3
    assert all(float(tick).is_integer() for tick in ours[2].get_xticks())
    assert bounds.plot().figure is not bounds.plot().figure
    assert not plt.get_fignums() and dict(plt.rcParams) == before
    # without L_k, the rows of the table
    plain = replace(bounds, iwae_per_datum={}, iwae_variance={})
    ticks = [tick.get_text() for tick in plain.plot().get_xticklabels()]
    assert ticks == ["ELBO", "log p̂"]


def test_history_shows_first_kept_and_last_epoch():
    epochs = [{"epoch": i, "elbo": -10.0 / i, "valid_elbo": -11.0 / i} for i in range(1, 6)]
    history = pv.History(epochs, best_epoch=4)
    head, training, validation = repr(history).splitlines()
    assert head.startswith("History: 5 epochs (weights of epoch 4)")
    assert training.split("  ")[-3:] == ["epoch 1 -10.000", "epoch 4 -2.500", "epoch 5 -2.000"]
    assert "epoch 4 -2.750" in validation
    cells = Tags(history._repr_html_()).cells
    assert cells[:3] == ["epoch 1", "epoch 4", "epoch 5"] and "-2.750" in cells
    assert repr(pv.History()) == "History: no epochs yet" and Tags(pv.History()._repr_html_())
    with pytest.raises(ValueError, match="expected a history with epochs to plot; got none"):
        pv.History().plot()


def test_programs_are_shown_by_their_parts():
    vae = pv.VAE((1, 8, 8), latent_dim=3)
    count = sum(p.numel() for p in vae.parameters())
    head, *parts = repr(vae).splitlines()
    assert head == f"VAE(event_shape=(1, 8, 8), latent_dim=3): {count:,} parameters on cpu"
    assert {part.split()[0] for part in parts} == {"prior:", "likelihood:", "posterior:"}
    sizes = [re.search(r"([\d,]+) parameters", part) for part in parts]
    assert sum(int(size[1].replace(",", "")) for size in sizes if size) == count
    assert str(vae) == torch.nn.Module.__repr__(vae) and "Linear(" in str(vae)
    assert "StandardNormal" in Tags(vae._repr_html_()).cells


def test_progress_bars_are_widgets_in_a_notebook(monkeypatch):
    class Widget(tqdm):
        pass

    module = ModuleType("tqdm.autonotebook")
    module.tqdm = Widget  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm.autonotebook", module)
    shown, hidden = progress_bar(3, True), progress_bar(3, False)
    assert type(shown) is Widget and not shown.disable and type(hidden) is tqdm and hidden.disable
    shown.close()
