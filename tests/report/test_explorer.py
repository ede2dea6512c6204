"""The explorer page in headless Chromium: its decoder, its controls, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from browser import Browser
from run_folders import TINY
from torch import nn

import pyro_vae as pv
from pyro_vae import distributions
from pyro_vae.cli.app import main
from pyro_vae.data import Split
from pyro_vae.likelihoods import DiscretizedLogistic, Gaussian, StudentT
from pyro_vae.networks import MLP, ConvNet, ResNet
from pyro_vae.priors import UniformSphere
from pyro_vae.queries.latent_paths import LatentPoint, interpolate_latents
from pyro_vae.report.explorer import explore
from pyro_vae.report.explorer.graph import Tensors, make_graph

SMALL = partial(MLP, hidden=(16,))


def grey_vae():
    """A VAE of three latents whose decoder is far from constant."""
    torch.manual_seed(0)
    vae = pv.VAE((8, 8), 3, encoder=partial(SMALL, init=0.3), decoder=partial(SMALL, init=1.0))
    data = Split(torch.randint(0, 2, (60, 8, 8)).float(), labels=torch.arange(60) % 3 - 1)
    return vae, data


def colour_vae():
    """A ConvNet with batch norm and a condition, for levels of three channels."""
    torch.manual_seed(1)
    network = partial(ConvNet, channels=(4, 6), norm="batch")
    likelihood = partial(DiscretizedLogistic, levels=7)
    vae = pv.ConditionalVAE((3, 9, 8), 3, 4, likelihood=likelihood, encoder=SMALL, decoder=network)
    for module in vae.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(module.weight, 1.0, 0.3)
    data = Split(
        torch.randint(0, 8, (30, 3, 9, 8)).float(), labels=torch.arange(30) % 3, classes="abc"
    )
    return vae, data


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explorer")
    made = {"grey": grey_vae(), "colour": colour_vae()}
    for name, (vae, data) in made.items():
        explore(vae, data, folder / f"{name}.html", title=f"</script>{name}")
    return folder, made


@pytest.fixture(scope="module")
def browser():
    with Browser() as made:
        yield made


@pytest.fixture
def page(request, pages, browser):
    """The page that the parameter names, freshly opened, with its program and data."""
    folder, made = pages
    browser.open(folder / f"{request.param}.html")
    browser.settle()
    yield browser, *made[request.param]
    assert browser.messages == []
    assert all(address.startswith(("file:", "about:")) for address in browser.requests)


def pixels(browser):
    """The pixels of the decoded picture, as bytes."""
    canvas = "document.querySelector('#decoded canvas')"
    area = f"0, 0, {canvas}.width, {canvas}.height"
    return browser.evaluate(f"Array.from({canvas}.getContext('2d').getImageData({area}).data)")


def numbers(browser, expression):
    """The value of a JavaScript expression, an array of numbers."""
    return np.array(browser.evaluate(f"Array.from({expression})"))


@pytest.mark.parametrize("page", ["grey"], indirect=True)
def test_decoder_of_an_mlp_is_that_of_torch(page):
    browser, vae, _ = page
    for z in torch.randn(5, 3):  # other points than those that the page compares
        with torch.no_grad():
            expected = vae.likelihood(z).mean.flatten().numpy()
        got = numbers(browser, f"decode({z.tolist()}, [], 'mean')")
        assert expected.std() > 0.1
        assert np.abs(got - expected).max() < 1e-5
    assert float(browser.evaluate("document.body.dataset.difference")) < 1e-6
    assert browser.evaluate("document.getElementById('warning').hidden")


@pytest.mark.parametrize("page", ["colour"], indirect=True)
def test_decoder_of_a_conv_net_with_a_condition_is_that_of_torch(page):
    browser, vae, _ = page
    vae.eval()
    for c, z in enumerate(torch.randn(3, 4)):
        code = torch.cat([z, nn.functional.one_hot(torch.tensor(c), 3)])
        with torch.no_grad():
            expected = vae.likelihood(code).mean
        got = numbers(browser, f"decode({z.tolist()}, [[{c}]], 'mean')")
        assert np.abs(got - expected.flatten().numpy()).max() < 7e-5  # 1e-5 of the levels
    # the selector changes the condition, and the picture shows channels as colours
    browser.evaluate(
        "element('class').value = 2; element('class').dispatchEvent(new Event('change'))"
    )
    browser.settle()
    assert browser.evaluate("state.condition") == [[2]]
    assert browser.evaluate("element('class').selectedOptions[0].text") == "c"
    with torch.no_grad():
        z = torch.tensor(browser.evaluate("state.z"))
        x = vae.likelihood(torch.cat([z, torch.tensor([0.0, 0.0, 1.0])])).mean
    shown = np.array(pixels(browser)).reshape(9, 8, 4)[..., :3]
    assert np.abs(shown - 255 / 7 * x.permute(1, 2, 0).numpy()).max() <= 0.51


@pytest.mark.parametrize("page", ["colour"], indirect=True)
def test_draws_have_the_distribution_of_torch(page):
    browser, vae, _ = page
    vae.eval()
    z, count = torch.randn(4), 400
    with torch.no_grad():
        p = vae.likelihood(torch.cat([z, torch.tensor([1.0, 0.0, 0.0])]))
    inputs = "{shape: [1, 4], data: Float32Array.from(z)}, {shape: [1], data: [0]}"
    run = f"Array.from(graphs.draw.run([{inputs}], i).data)"
    draws = f"Array.from({{length: {count}}}, (_, i) => {run})"
    x = torch.tensor(browser.evaluate(f"(z => {draws})({z.tolist()})")).double()
    assert bool((x == x.round()).all()) and 0 <= x.min() < x.max() <= 7
    mean, variance = p.mean.flatten(), p.variance.flatten()
    # 216 values: five standard errors are exceeded once in 8000 runs
    error = (variance / count).sqrt()
    assert float(((x.mean(0) - mean).abs() / error.clamp(min=1e-3)).max()) < 5
    assert float((x.var(0).mean() / variance.mean()).log().abs()) < 0.1


@pytest.mark.parametrize("page", ["grey"], indirect=True)
def test_dragging_moves_z_in_the_plane_of_the_map(page):
    browser, _, _ = page
    before, z = pixels(browser), numbers(browser, "state.z")
    box = browser.evaluate("JSON.stringify(map.getBoundingClientRect())")
    box = json.loads(box)
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"]
    browser.mouse("pressed", x, y)
    browser.mouse("moved", x + 50, y - 40)
    browser.mouse("moved", x + 90, y - 70)
    browser.mouse("released", x + 90, y - 70)
    browser.settle()
    moved = numbers(browser, "state.z")
    assert pixels(browser) != before
    # z is at the pointer, and unchanged perpendicular to the plane
    fractions = [0.5 + 90 / box["width"], 0.5 + 70 / box["height"]]
    axes = np.array(browser.evaluate("shown.map((axis) => axis.direction)"))
    target = [
        a + f * (b - a) for f, (a, b) in zip(fractions, browser.evaluate("limits"), strict=True)
    ]
    reached = browser.evaluate("shown.map((axis) => coordinate(axis, state.z))")
    assert np.abs(np.subtract(reached, target)).max() < 0.02
    assert np.abs(moved - z - (moved - z) @ axes.T @ axes).max() < 1e-6
    # two latents instead of the components
    browser.evaluate("element('horizontal').value = 2; selectAxes()")
    browser.evaluate("moveInPlane([0.1, 0.2])")
    assert (
        np.abs(
            np.subtract(browser.evaluate("shown.map((a) => coordinate(a, state.z))"), [0.1, 0.2])
        ).max()
        < 1e-6
    )


@pytest.mark.parametrize("page", ["grey"], indirect=True)
def test_keyboard_moves_a_slider_and_the_map(page):
    browser, _, _ = page
    z, before = numbers(browser, "state.z"), pixels(browser)
    (first, *_) = np.argsort(browser.evaluate("content.carried"))[::-1].tolist()
    browser.evaluate("document.querySelector('#active input').focus()")
    for _ in range(5):
        browser.press("ArrowRight", 39)
    browser.settle()
    low, high = browser.evaluate(f"content.ranges[{first}]")
    change = numbers(browser, "state.z") - z
    # the slider starts at the nearest of 200 steps
    assert abs(change[first] - 5 * (high - low) / 200) < (high - low) / 390
    assert np.abs(np.delete(change, first)).max() == 0
    assert pixels(browser) != before
    browser.evaluate("map.focus()")
    before = numbers(browser, "shown.map((axis) => coordinate(axis, state.z))")
    browser.press("ArrowUp", 38)
    browser.settle()
    after = numbers(browser, "shown.map((axis) => coordinate(axis, state.z))")
    (_, (low, high)) = browser.evaluate("limits")
    assert after - before == pytest.approx([0, 0.02 * (high - low)], abs=1e-6)
    browser.press("Enter", 13)
    browser.settle()
    assert browser.evaluate("row(codes, state.example)") == browser.evaluate("state.z")
    # every control can be reached by Tab, with its focus visible
    browser.evaluate("document.querySelector('[name=mode]').focus()")
    reached = []
    while len(reached) < 50:
        browser.press("Tab", 9)
        if browser.evaluate("document.activeElement === document.body"):
            break
        reached.append(browser.evaluate("document.activeElement.id || document.activeElement.type"))
        assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert {"sample", "reset", "choose", "map", "horizontal", "from", "position", "range"} <= {
        *reached
    }


@pytest.mark.parametrize("page", ["grey"], indirect=True)
def test_buttons_interpolation_and_narrow_screens(page):
    browser, _, _ = page
    browser.evaluate("element('sample').click()")
    assert browser.evaluate("state.z") == browser.evaluate("row(samples, 0)")
    browser.evaluate("element('reset').click()")
    assert browser.evaluate("state.z") == browser.evaluate("content.centre")
    assert browser.evaluate("content.labels[state.to]") != browser.evaluate("content.labels[0]")
    browser.evaluate("element('to').value = 7; element('to').dispatchEvent(new Event('change'))")
    browser.evaluate(
        "element('position').value = 0.5; element('position').dispatchEvent(new Event('input'))"
    )
    middle = (numbers(browser, "row(codes, 0)") + numbers(browser, "row(codes, 7)")) / 2
    assert numbers(browser, "state.z") == pytest.approx(middle)
    browser.evaluate("document.querySelectorAll('[name=mode]')[1].click()")
    browser.settle()
    first = pixels(browser)
    assert {*np.reshape(first, (-1, 4))[:, 0].tolist()} == {0, 255}  # Bernoulli
    browser.evaluate("element('redraw').click()")
    browser.settle()
    assert pixels(browser) != first
    browser.resize(400, 800)
    browser.settle()
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    browser.resize(1200, 900)


def test_latents_on_the_sphere_and_a_table(browser, tmp_path):
    posterior = pv.posteriors.PowerSpherical
    vae = pv.VAE((3,), 4, UniformSphere, Gaussian, posterior, encoder=SMALL, decoder=SMALL)
    x = torch.randn(40, 3) * torch.tensor([1.0, 10.0, 100.0])
    browser.open(explore(vae, x, tmp_path / "page.html"))
    browser.settle()
    norm = "norm(state.z)"
    for move in (
        "setLatent(2, 0.4)",
        "moveInPlane([0.3, -0.2])",
        "samplePrior()",
        "setPosition(0.3)",
    ):
        browser.evaluate(move)
        assert browser.evaluate(norm) == pytest.approx(1, abs=1e-6), move
    a, b = (torch.tensor([browser.evaluate(f"row(codes, state.{end})")]) for end in ("from", "to"))
    path = interpolate_latents(
        LatentPoint(a, False, True), LatentPoint(b, False, True), 11, "spherical"
    )
    assert numbers(browser, "state.z") == pytest.approx(path[3, 0].numpy(), abs=1e-5)
    browser.evaluate("setLatent(1, -0.7)")
    browser.settle()
    z = torch.tensor(browser.evaluate("state.z"))
    assert float(z[1]) == pytest.approx(-0.7)
    cells = "[...document.querySelectorAll('#decoded .bar > :last-child')]"
    shown = browser.evaluate(f"{cells}.map((cell) => Number(cell.textContent))")
    with torch.no_grad():
        assert shown == pytest.approx(vae.likelihood(z).mean.tolist(), rel=1e-3)
    assert browser.messages == []


LAYERS = nn.Sequential(
    *(nn.Linear(3, 48), nn.LeakyReLU(), nn.Unflatten(1, (12, 2, 2)), nn.PixelShuffle(2)),
    *(nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3), nn.GELU(), nn.Upsample(scale_factor=2)),
    *(nn.ConvTranspose2d(6, 4, (3, 2), (2, 1), (1, 0), groups=2), nn.SiLU(), nn.GroupNorm(2, 4)),
    *(
        nn.Softplus(),
        nn.Mish(),
        nn.Hardswish(),
        nn.ELU(),
        nn.SELU(),
        nn.Softmax(1),
        nn.LogSigmoid(),
    ),
    *(nn.PReLU(), nn.Hardtanh(), nn.ReLU6(), nn.Flatten(), nn.LayerNorm(540), nn.GLU(), nn.Tanh()),
)


def test_operations_of_other_networks_and_likelihoods(pages, browser):
    """Layers that this package has no network for, and the random operations."""
    torch.manual_seed(2)
    residual = ResNet((3,), (2, 5, 6), channels=(3,), blocks=1, norm="layer")
    z = torch.randn(1, 3)

    def decode(z):
        return torch.cat([LAYERS(z).flatten(), residual(z).flatten()])

    def fn(z):
        rate = residual(z).flatten()[:8].exp()
        mixture = dist.MixtureSameFamily(
            dist.Categorical(logits=torch.stack([rate, -rate], -1)),
            dist.Normal(torch.tensor([-2.0, 3.0]).expand(8, 2), 0.5),
        )
        return [
            *(dist.Poisson(40 * rate), distributions.Binomial(20, logits=rate), mixture),
            *(distributions.Beta(rate, 2 * rate + 1), distributions.StudentT(9.0, rate, rate)),
            *(
                dist.Laplace(rate, rate),
                distributions.ContinuousBernoulli(rate),
                dist.Gamma(rate, 2.0),
                dist.Normal(rate, rate),
            ),
        ]

    def draw(z):
        return torch.cat([part.sample() for part in fn(z)])

    folder, _ = pages
    browser.open(folder / "grey.html")
    tensors = Tensors()
    with torch.no_grad():
        graphs = [make_graph(function, z, tensors=tensors) for function in (decode, draw)]
        expected, parts = decode(z), fn(z)
    browser.evaluate(
        f"var test = {json.dumps(graphs)}.map((nodes) => new Graph(nodes, "
        f"new Float32Array(decodeBytes('{tensors.encode()}').buffer)))"
    )
    inputs = f"[{{shape: [1, 3], data: Float32Array.from({z[0].tolist()})}}]"
    got = numbers(browser, f"test[0].run({inputs}).data")
    assert np.abs(got - expected.numpy()).max() < 1e-5 * float(expected.abs().max())
    run = f"Array.from(test[1].run({inputs}, i).data)"
    x = torch.tensor(browser.evaluate(f"Array.from({{length: 2000}}, (_, i) => {run})")).double()
    mean = torch.cat([part.mean for part in parts]).double()
    variance = torch.cat([part.sample((20_000,)).var(0) for part in parts]).double()
    # 72 values: five standard errors are exceeded once in 24,000 runs
    assert float(((x.mean(0) - mean) / (variance / 2000).sqrt()).abs().max()) < 5
    ratios = (x.var(0) / variance).reshape(len(parts), 8).mean(1)
    assert bool(((ratios - 1).abs() < 0.15).all()), ratios


def test_damaged_decoder_is_flagged(pages, browser, tmp_path):
    folder, _ = pages
    page = (folder / "grey.html").read_text(encoding="utf-8")
    content = json.loads(re.search('<script type="application/json".*?>(.*?)</script>', page)[1])
    weights = np.frombuffer(base64.b64decode(content["numbers"]), "<f4").copy()
    damaged = base64.b64encode((weights * np.float32(1.001)).tobytes()).decode()
    (tmp_path / "page.html").write_text(page.replace(content["numbers"], damaged), "utf-8")
    browser.open(tmp_path / "page.html")
    assert not browser.evaluate("element('warning').hidden")
    assert "do not rely on" in browser.evaluate("element('warning').textContent")


def test_policy_allows_only_the_scripts_of_the_page(pages):
    page = (pages[0] / "grey.html").read_text(encoding="utf-8")
    (policy,) = re.findall('Content-Security-Policy" content="(.*?)"', page)
    scripts = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    assert policy.startswith(f"default-src 'none'; script-src {allowed}; style-src 'sha256-")
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert "unsafe" not in policy and "://" not in page and " style=" not in page
    assert not re.search(r" on\w+=", page) and len(scripts) == 2


def _labels(program):
    return program, Split(torch.zeros(4, 8, 8), labels=torch.tensor([0, 1, -1, 0]))


BILINEAR = nn.Sequential(
    nn.Linear(2, 16), nn.Unflatten(1, (1, 4, 4)), nn.Upsample(scale_factor=2, mode="bilinear")
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: (pv.VAE((8, 8), 2, decoder=BILINEAR), torch.zeros(4, 8, 8)),
            "that the page can run .*; got the operation upsample_bilinear2d: use another layer",
        ),
        (
            lambda: (pv.VAE((2, 3, 4, 5), 2), torch.zeros(4, 2, 3, 4, 5)),
            r"or vectors; got examples of shape \(2, 3, 4, 5\): use pyro_vae.queries",
        ),
        (
            lambda: _labels(pv.SemiSupervisedVAE((8, 8), 2, 2)),
            "expected the labels of all examples, .*; got examples without a class: pass a Split",
        ),
    ],
)
def test_what_a_page_cannot_show_is_refused(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        explore(*make(), tmp_path / "page.html")
    assert not any(tmp_path.iterdir())


def test_lower_layers_and_noise_are_at_their_means(tmp_path):
    """One moves through the top of a hierarchy, and through z of a VAE with random weights."""
    programs = {
        "hierarchy": pv.HierarchicalVAE((4, 4), (3, 2), encoders=SMALL, decoders=SMALL),
        "weights": pv.BayesianVAE((4, 4), 2, encoder=SMALL, decoder=SMALL, likelihood=StudentT),
    }
    for name, program in programs.items():
        page = explore(program, torch.rand(9, 4, 4).round(), tmp_path / f"{name}.html")
        text = page.read_text(encoding="utf-8")
        content = json.loads(
            re.search('<script type="application/json".*?>(.*?)</script>', text)[1]
        )
        pool = np.frombuffer(base64.b64decode(content["numbers"]), "<f4")
        place = content["references"][5]
        z = torch.tensor(pool[place["inputs"][0]["offset"] :][:2].copy())
        x = pool[place["x"]["offset"] :][:16]
        with torch.no_grad():
            if name == "hierarchy":
                assert content["site"] == "z2" and content["others"] == ["z1"]
                z = program.conditionals[0](z).mean
            else:
                assert content["site"] == "z" and len(content["others"]) == 2
            assert x == pytest.approx(program.likelihood(z).mean.flatten().numpy(), abs=1e-6)


def test_command_and_python_of_the_page_in_the_documentation(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/how-to/explore.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    fit = ["fit", "--config", "tiny.yaml", "--run", "runs/first"]
    assert main(fit) == 0
    for command in commands.splitlines():
        assert main(command.split()[1:]) == 0
    run = pv.load("runs/first")
    file = run.explorer.resolve()
    assert f"explorer: {file} (0." in capsys.readouterr().out
    assert "VAE trained on digits · 180 test examples" in file.read_text(encoding="utf-8")
    assert Path("first.html").read_bytes() == file.read_bytes()  # there are fewer than 200
    exec(code, {"vae": run.program, "data": run.data})
    assert "<title>Digits" in Path("latent-space.html").read_text(encoding="utf-8")
    assert main(["explore", "runs/first", "--output", "runs/first/page.html"]) == 1
    assert "outside the folder of the run" in capsys.readouterr().err
    # training again removes the page of the old weights
    assert main([*fit, "--overwrite"]) == 0
    assert not file.exists()
