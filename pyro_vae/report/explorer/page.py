"""The page of an explorer: its data, and the file with everything inside."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor

from ... import queries
from ...core import files
from ...core.components import Labels
from ...core.random import Stream
from ...core.validation import as_path, positive_int
from ...data import Column, Split
from ...data.scaling import in_data_units
from ...data.splits import are_class_labels
from ...evaluation.latent_diagnostics.kl import divergences
from ...programs.base import label_use
from ...programs.context import evaluating
from ...programs.inputs import AnyData, materialize, read_with_arguments
from .decoder import Decoder
from .graph import Tensors, UnsupportedOperationError, make_graph

__all__ = ["explore"]

#: Samples of the prior in a page.
_NUM_SAMPLES = 500
#: Samples per example for the KL of each latent.
_NUM_KL_SAMPLES = 8
#: Points at which a page compares its decoder with PyTorch's.
_NUM_REFERENCES = 4


def explore(
    program: Any,
    data: AnyData,
    file: str | Path,
    *,
    title: str = "Latent space",
    about: str = "",
    columns: Sequence[Column] | None = None,
    classes: Sequence[str] | None = None,
    num_data: int = 500,
    seed: int = 0,
) -> Path:
    """Write a page on which one moves through the latent space of a program, without a server.

    The page is one HTML file that makes no network request. It contains the decoder, as a graph of
    tensor operations that it runs in JavaScript, the codes of held-out examples (the means of
    q(z|x) where these exist) and samples of the prior. It compares its decoder with PyTorch's at
    some codes and shows the largest difference.

    Examples are grey or colour images, or vectors, whose values are bars. A program that uses
    labels has a selector of the class. In a hierarchy, one moves through the first latent site that
    the model samples, and the other latents are at their means.

    Arguments:
        program: a program that samples without data, such as those of
            :mod:`pyro_vae.models`.
        data: held-out examples, a tensor ``(N, *event_shape)`` or anything that
            :func:`~pyro_vae.data.as_split` accepts; their labels colour the map, and are the
            conditions of a program that uses them.
        file: the file, written atomically.
        title, about: the title of the page, and a line below it.
        columns: the columns of a table, which name the bars.
        classes: the names of the classes; by default those of the data.
        num_data: use only the first examples.
        seed: seed of the samples and of the binarisation.

    Returns:
        The path of the file.

    Raises:
        ValueError: if the examples are neither images nor vectors, if the latents are not a
            continuous vector per example, if p(x|z) has no mean, or if the decoder has an
            operation that the page cannot run.
        OSError: if the file cannot be written; an existing one is kept.
    """
    data = read_with_arguments(program, data, {})
    split = data if isinstance(data, Split) else Split(data)
    split = split.head(positive_int("num_data", num_data))
    path = as_path(file)
    x = materialize(program, split, seed)
    content = {
        **_describe_examples(x, split, columns),
        **_describe_program(program, x, split, seed),
        "classes": _class_names(split, classes),
    }
    files.atomic_write_text(path, _render(content, title, about))
    return path


def _describe_program(program: Any, x: Tensor, split: Split, seed: int) -> dict[str, Any]:
    """Return the graphs of the decoder, codes, samples and the latents by what they carry."""
    args = _conditions(program, split)
    program.check(x, *args)
    tensors = Tensors()
    with evaluating(program.model, program.guide, seed=seed, stream=Stream.EXPLORE):
        rows = torch.arange(_NUM_SAMPLES) % len(x)
        conditions = [c[rows] for c in args]
        condition = conditions[0] if conditions else None
        decoder, samples = Decoder.create(program, condition, _NUM_SAMPLES, split.scale)
        codes, kind = _encode(program, x, args, decoder.site, seed)
        first = (codes[:1], *(c[:1] for c in args))
        decoder.mean(*first)  # errors of the program come before those of its graph
        try:
            mean = make_graph(decoder.mean, *first, tensors=tensors)
        except UnsupportedOperationError as error:
            raise ValueError(
                f"expected a decoder and a likelihood of operations that the page can run (linear, "
                f"convolutional and normalisation layers, element-wise functions); got {error}: "
                f"use another layer, or pyro_vae.queries in Python"
            ) from error
        try:
            draw, no_draw_reason = make_graph(decoder.draw, *first, tensors=tensors), None
        except UnsupportedOperationError as error:
            draw, no_draw_reason = None, f"the page cannot run {error}"
        points = [torch.cat([codes[:_NUM_REFERENCES], samples[:_NUM_REFERENCES]])]
        points += [
            torch.cat([c[:_NUM_REFERENCES], s[:_NUM_REFERENCES]])
            for c, s in zip(args, conditions, strict=True)
        ]
        inputs = [[part[i : i + 1] for part in points] for i in range(len(points[0]))]
        references = [
            {"inputs": [tensors.add(p) for p in point], "x": tensors.add(decoder.mean(*point))}
            for point in inputs
        ]
    return {
        "site": decoder.site,
        "others": list(decoder.others),
        "sphere": kind == "direction",
        "codeKind": kind,
        "mean": mean,
        "draw": draw,
        "noDrawReason": no_draw_reason,
        "codes": tensors.add(codes),
        "samples": tensors.add(samples),
        "conditions": [tensors.add(c) for c in args],
        "sampleConditions": [tensors.add(c) for c in conditions],
        "hasClasses": bool(args) and are_class_labels(args[0]),
        "references": references,
        **_describe_latents(program, x, args, decoder.site, codes, samples, seed),
        "numbers": tensors.encode(),
    }


def _conditions(program: Any, split: Split) -> tuple[Tensor, ...]:
    """Return the labels of the examples, if the program uses labels.

    Raises:
        ValueError: if one is unknown.
    """
    use = label_use(program)
    if use is Labels.UNUSED:
        return ()
    labels = split.labels
    if labels is None or (are_class_labels(labels) and bool((labels < 0).any())):
        got = "none" if labels is None else "examples without a class"
        raise ValueError(
            f"expected the labels of all examples, for a program that uses labels; got {got}: pass "
            f"a Split with labels"
        )
    return (labels,)


def _encode(
    program: Any, x: Tensor, args: tuple[Tensor, ...], site: str, seed: int
) -> tuple[Tensor, str]:
    """Return the codes of examples, ``(N, D)``, and their kind, see :func:`queries.encode`."""
    columns = queries.encode(program, x, *args, seed=seed)
    kinds = {name.rpartition(".")[2]: name for name in columns if name.rpartition(".")[0] == site}
    kind = next((k for k in ("mean", "direction", "centre", "draw") if k in kinds), None)
    if kind is None:
        got = "a discrete one" if kinds else "no such site in the guide"
        raise ValueError(f"expected continuous latents at the site {site!r}; got {got}")
    return torch.from_numpy(columns[kinds[kind]]).to(x), kind


def _describe_latents(
    program: Any,
    x: Tensor,
    args: tuple[Tensor, ...],
    site: str,
    codes: Tensor,
    samples: Tensor,
    seed: int,
) -> dict[str, Any]:
    """Return how much each latent carries, its range, and the plane of largest variance."""
    codes, samples = codes.double().cpu(), samples.double().cpu()
    result = divergences(program, x, *args, num_samples=_NUM_KL_SAMPLES, seed=seed)
    carried, measure = result.sites[site].dimensions, "KL"
    if carried is None:  # q or p does not factorise over the latents
        carried, measure = codes.var(0, correction=0).numpy(), "variance"
    both = torch.cat([codes, samples])
    low, high = both.amin(0), both.amax(0)
    margin = 0.05 * (high - low).clamp(min=1e-3)
    centre = codes.mean(0)
    _, singular, axes = np.linalg.svd((codes - centre).numpy(), full_matrices=False)
    shares = singular**2 / max(float((singular**2).sum()), 1e-300)
    # the sign of an axis is arbitrary: make its largest element positive
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    return {
        "carried": [float(value) for value in carried],
        "measure": measure,
        "ranges": torch.stack([low - margin, high + margin], 1).tolist(),
        "centre": centre.tolist(),
        "axes": (signs[:, None] * axes)[:2].tolist(),
        "shares": shares[:2].tolist(),
    }


def _describe_examples(x: Tensor, split: Split, columns: Sequence[Column] | None) -> dict[str, Any]:
    """Return the shape of an example, the range of its values, and the examples as bytes."""
    shape = tuple(split.event_shape)
    is_image = len(shape) in (2, 3) and shape[:-2] in ((), (1,), (3,))
    if not is_image and len(shape) != 1:
        raise ValueError(
            f"expected images, grey (H, W) or (1, H, W) or colour (3, H, W), or vectors; got "
            f"examples of shape {shape}: use pyro_vae.queries from Python"
        )
    if columns is not None and any(c.type in ("categorical", "ordinal") for c in columns):
        raise ValueError(
            "expected images, or a table of numbers; got columns of categories, whose mean has no "
            "name: use pyro_vae.queries from Python"
        )
    values = in_data_units(x, split.scale).double().cpu()
    known = values.nan_to_num()
    if is_image:
        low, high = known.min().clamp(max=0), known.max().clamp(min=1)
    else:  # each column has its own range
        low, high = known.amin(0), known.amax(0)
    levels = ((known - low) / (high - low).clamp(min=1e-30) * 255).round().to(torch.uint8)
    names = None if is_image else [f"x{i}" for i in range(shape[0])]
    if columns is not None and not is_image:
        names = [column.name for column in columns]
    return {
        "shape": list(shape),
        "isImage": is_image,
        "low": low.reshape(-1).tolist(),
        "high": high.reshape(-1).tolist(),
        "names": names,
        "examples": base64.b64encode(levels.contiguous().numpy().tobytes()).decode(),
        "labels": _class_labels(split),
    }


def _class_labels(split: Split) -> list[int] | None:
    labels = split.labels
    return labels.tolist() if labels is not None and are_class_labels(labels) else None


def _class_names(split: Split, names: Sequence[str] | None) -> list[str] | None:
    """Return the names of the classes 0, 1, …; ``None`` without class labels."""
    labels = _class_labels(split)
    names = split.classes if names is None else names
    if labels is None or names is not None:
        return None if labels is None else [str(name) for name in names or ()]
    return [str(label) for label in range(max([*labels, 0]) + 1)]


def _render(content: dict[str, Any], title: str, about: str) -> str:
    folder = Path(__file__).parent
    scripts = [(folder / name).read_text(encoding="utf-8") for name in ("graph.js", "page.js")]
    style = (folder / "page.css").read_text(encoding="utf-8")
    # no "</script>" or "<!--" in a string may end the element
    data = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return templates.get_template("page.html.jinja").render(
        title=title,
        about=about,
        scripts=scripts,
        style=style,
        script_hashes=" ".join(f"'{_hash(script)}'" for script in scripts),
        style_hash=f"'{_hash(style)}'",
        data=data,
    )


def _hash(text: str) -> str:
    """Return the source expression of an inline script or style in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
