"""The HTML report of a run, a single self-contained file."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..config.experiment import flatten_settings
from ..core import files
from ..data import Split
from ..evaluation import EVALUATIONS, Bounds
from ..evaluation.results import Result
from ..evaluation.sections import Picture
from ..evaluation.tables import Table, TextTable, to_html
from ..learning.history import plot_learning_curves
from ..runs.provenance import format_bits_per_dim
from ..runs.run import Run
from .headline import describe_training, summarize_bounds
from .run_pictures import make_latent_pictures, make_sample_pictures, make_weight_pictures
from .svg import to_inline_svg

__all__ = ["Block", "learning_picture", "render", "take_split", "write_report"]

_log = logging.getLogger("pyro_vae")

#: The first evaluations after the bounds; the others follow in their order.
_ORDER = ("latents", "calibration")


@dataclass(frozen=True)
class Block:
    """A part of a page with a heading."""

    title: str
    tables: Sequence[Table | TextTable] = ()
    pictures: Sequence[Picture] = ()
    about: str = ""
    caution: str = ""
    note: str = ""


@dataclass(frozen=True)
class _Opened:
    """A run with its results and the evaluated examples."""

    run: Run
    results: dict[str, Result]
    result: dict[str, Any]
    split: Split | None = field(repr=False)

    @property
    def bounds(self) -> Bounds:
        bounds = self.results["bounds"]
        assert isinstance(bounds, Bounds)
        return bounds


def write_report(run: Run, output: Path | None = None) -> Path:
    """Write the report of an evaluated run, and ``figures/*.png`` in its folder.

    Arguments:
        run: the run.
        output: the file; ``report.html`` in the folder of the run by default.

    Returns:
        The file.

    Raises:
        RunError: if the run is not finished or has no bounds yet, if a result is damaged or one
            of other weights, or if another process trains the run or writes its report.
    """
    run.require_config()
    path = run.report if output is None else output
    with run.exclusive("report"):
        opened = _open(run)
        files.atomic_write_text(path, _render_run(opened))
    return path


def _open(run: Run) -> _Opened:
    run.program  # noqa: B018  errors of the run come before those of its results
    results: dict[str, Result] = {"bounds": run.read_bounds()}
    results |= {
        name: run.read_evaluation(name)
        for name in EVALUATIONS
        if name not in results and run.evaluation_file(name).is_file()
    }
    # the files of the results count: a killed process may have left older entries
    result = run.read_result()
    result |= {name: dict(r.provenance) for name, r in results.items()}
    # the evaluated examples, with the same dynamic binarisation
    split = take_split(run, result["bounds"]["split"], len(results["bounds"]))
    return _Opened(run, results, result, split)


def _render_run(opened: _Opened) -> str:
    run, bounds, result = opened.run, opened.bounds, opened.result
    return render(
        "page.html.jinja",
        run.figures,
        title=run.name,
        headline=summarize_bounds(bounds),
        facts=describe_training(run.program, result),
        bounds=bounds,
        result=result,
        bits=format_bits_per_dim(result["bounds"].get("bits_per_dim", {}))
        if "bits_per_dim" in result["bounds"]
        else "",
        blocks=list(_make_blocks(opened)),
        settings=flatten_settings(result["config"]),
        missing=[e for name, e in EVALUATIONS.items() if name not in opened.results],
        folder=run.folder,
    )


def render(template: str, figures: Path | None, **context: Any) -> str:
    """Return a page.

    Arguments:
        template: the name of its template.
        figures: the folder for the pictures as PNG files, if they are written.
        **context: the values in the template.
    """

    def draw(picture: Picture) -> Markup:
        if figures is not None:
            picture.write(figures)
        if not picture.is_bitmap:
            return Markup(to_inline_svg(picture))
        data = base64.b64encode(picture.png()).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(
            picture.description, data
        )

    folder = Path(__file__).parent
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    style = (folder / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return templates.get_template(template).render(
        style=Markup(style),
        style_hash=f"sha256-{digest}",
        draw=draw,
        to_html=lambda table: Markup(to_html(table)),
        **context,
    )


def _make_blocks(opened: _Opened) -> Iterator[Block]:
    run, bounds, result, split = opened.run, opened.bounds, opened.result, opened.split
    program, seed = run.program, bounds.seed or 0
    section = EVALUATIONS["bounds"].make_section(bounds)
    measure = result["bounds"].get("measure")
    ess = result["bounds"]["ess"]
    yield Block(
        f"Bounds on log p(x): {len(bounds)} {result['bounds']['split']} examples × "
        f"{bounds.num_samples} samples",
        section.tables,
        [
            *section.pictures,
            *(() if split is None else make_weight_pictures(program, split, bounds)),
        ],
        note=f"Nats per datum, higher is better{f'; p(x) is a {measure}' if measure else ''}. "
        f"“± data” is the standard error of the mean over examples, “± MC” the standard "
        f"error of the Monte Carlo sampling on these examples. Effective sample size: median "
        f"{_format(ess['median'])}, worst {_format(ess['worst'])} of {bounds.num_samples}.",
    )
    pictures = [learning_picture(run)]
    yield Block("Training", pictures=pictures)
    shown = split or run.label_examples()
    pictures = [] if shown is None else [*make_sample_pictures(program, shown, seed, split)]
    if pictures:
        yield Block("Samples and reconstructions", pictures=pictures)
    latents = [] if split is None else [*make_latent_pictures(program, split, seed, run.classes)]
    names = [n for n in _ORDER if n in EVALUATIONS]
    names += [n for n in EVALUATIONS if n not in (*_ORDER, "bounds")]
    for name in names:
        extra = latents if name == "latents" else []
        if name in opened.results:
            yield _make_evaluation_block(opened, name, extra)
        elif extra:
            yield Block(EVALUATIONS[name].title, pictures=extra)


def _make_evaluation_block(opened: _Opened, name: str, extra: Sequence[Picture]) -> Block:
    evaluation, entry = EVALUATIONS[name], opened.result[name]
    section = evaluation.make_section(opened.results[name])
    examples = f"{entry['num_data']} {entry.get('split', 'simulated')} examples."
    return Block(
        evaluation.title,
        section.tables,
        [*section.pictures, *extra],
        f"{examples} {section.about}".strip(),
        section.caution,
    )


def learning_picture(run: Run) -> Picture:
    """Return the picture of the learning curves."""
    history = run.read_metrics()
    last = history.epochs[-1]
    values = [f"the training objective is {last['elbo']:.2f}"]
    values += [f"the validation ELBO {last['valid_elbo']:.2f}"] if "valid_elbo" in last else []
    alt = f"Learning curves over {len(history)} epochs. At the end {' and '.join(values)} nats."
    return Picture("learning", "Learning curves", "", plot_learning_curves(history), alt)


def take_split(run: Run, name: str, size: int) -> Split | None:
    """Return the evaluated examples, or ``None`` with a warning if their file is missing."""
    try:
        return run.data.take(name, size)
    except FileNotFoundError as error:
        _log.warning("report without weights, reconstructions and latents of examples: %s", error)
        return None


def _format(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1f}"
