"""The head of a report: the training, the best estimate of log p(x), and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation import Bounds
from ..programs.base import Program

__all__ = ["Headline", "describe_training", "summarize_bounds"]

#: The parts of a program that are named, in this order, and those that are networks.
_PARTS = ("prior", "likelihood", "posterior", "inference")
_NETWORKS = ("encoder", "encoders", "decoder", "decoders", "classifier")


@dataclass(frozen=True)
class Headline:
    """The best estimate of log p(x) and its reliability.

    Attributes:
        label: the name of the estimate.
        value: its mean in nats per datum.
        errors: its standard errors.
        verdict: one sentence.
        is_reliable: whether no example is flagged.
    """

    label: str
    value: str
    errors: str
    verdict: str
    is_reliable: bool


def summarize_bounds(bounds: Bounds) -> Headline:
    """Return the estimate of log p(x) with the fewest flagged examples, and the verdict."""
    # log p̂ first, which wins a tie
    candidates = [n for n in ("log_evidence", "ais", "laplace") if n in bounds.labels]
    flagged = {name: int(bounds.flagged(name).sum()) for name in candidates}
    name = min(candidates, key=lambda n: flagged[n])
    estimate, label = bounds.estimates[name], bounds.labels[name][0]
    errors = f"± {estimate.se_data:.3f} (test set) ± {estimate.se_monte_carlo:.3f} (Monte Carlo)"
    return Headline(
        label=f"{label}, an estimate of log p(x)",
        value=f"{estimate.value:.3f}".replace("-", "−"),
        errors=errors.replace("nan", "unknown"),
        verdict=_judge(bounds, name, flagged[name]),
        is_reliable=not flagged[name],
    )


def _judge(bounds: Bounds, name: str, flagged: int) -> str:
    size, label = len(bounds), bounds.labels[name][0].partition(" = ")[0]
    if flagged:
        low, value = max(
            [("the ELBO", bounds.elbo), *((f"L_{k}", v) for k, v in bounds.iwae.items())],
            key=lambda bound: bound[1],
        )
        which = f"all {size} examples" if flagged == size else f"{flagged} of {size} examples"
        return (
            f"{label} is not reliable for {which}; {low} gives log p(x) ≥ {value:.3f} in "
            f"expectation."
        ).replace("≥ -", "≥ −")
    elbo = bounds.per_datum["elbo"]
    gap = bounds.per_datum[name] - elbo
    variance = bounds.per_datum[f"{name}_variance"] + bounds.per_datum["elbo_variance"]
    mean, error = float(gap.mean()), float(np.sqrt(variance.sum())) / size
    if name == "log_evidence":
        mean, _, error = bounds.estimates["gap"]
    every = "the example" if size == 1 else f"all {size} examples"
    if not mean > 2 * error:
        return (
            f"{label} is a good estimate for {every}, and the ELBO is not measurably below it "
            f"({mean:.3f} ± {error:.3f} nats)."
        )
    return (
        f"{label} is a good estimate for {every}; the ELBO is {mean:.3f} ± {error:.3f} nats below "
        f"it (Monte Carlo)."
    )


def describe_training(program: Program, result: Mapping[str, Any]) -> dict[str, str]:
    """Return the model, the data and the training as text, by label.

    Arguments:
        program: the trained program.
        result: the run's ``result.json``.
    """
    config = result["config"]
    model = config["model"]
    options = {**model, **model.get("init_args", {})}
    facts = {"Model": f"{type(program).__name__}{_describe_latents(program)}"}
    for name in _PARTS:
        part = getattr(program, name, None)
        if part is not None:
            facts[name.capitalize()] = (
                f"{type(part).__name__}{_describe_options(options.get(name))}"
            )
    networks = [
        f"{name} {text}" for name in _NETWORKS for text in _describe_network(options.get(name))
    ]
    count = f"{result['fit']['parameters']:,} parameters"
    facts["Networks"] = "; ".join([*networks, count])
    facts["Data"] = _describe_data(result["data"])
    facts["Training"] = _describe_fit(result)
    return facts


def _describe_latents(program: Program) -> str:
    size = getattr(program, "latent_dim", None)
    if isinstance(size, int):
        return f", {size} latent variable{'s' * (size != 1)}"
    sizes = getattr(program, "latent_dims", None)
    return "" if not sizes else f", {' + '.join(map(str, sizes))} latent variables (bottom to top)"


def _describe_options(setting: Any) -> str:
    """Return the settings of a part that are numbers or names."""
    if not isinstance(setting, Mapping):
        return ""
    plain = {
        name: value
        for name, value in setting.get("init_args", {}).items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
    texts = [f"{name.replace('_', ' ')} {value}" for name, value in plain.items()]
    return f" ({', '.join(texts)})" if texts else ""


def _describe_network(setting: Any) -> Iterator[str]:
    for item in setting if isinstance(setting, list) else [setting]:
        if isinstance(item, Mapping) and "class_path" in item:
            sizes = next(
                (
                    item.get("init_args", {})[name]
                    for name in ("hidden", "channels")
                    if isinstance(item.get("init_args", {}).get(name), list)
                ),
                [],
            )
            yield f"{_class_name(item)} {'–'.join(map(str, sizes))}".strip()


def _describe_data(data: Mapping[str, Any]) -> str:
    shape = data.get("shapes", {}).get("event_shape")
    sizes = data.get("sizes", {})
    size = f", examples of {' × '.join(map(str, shape))}" if shape else ""
    counts = ", ".join(f"{count} {name}" for name, count in sizes.items() if count)
    labelled = f", {data['labelled']} labels" if "labelled" in data else ""
    values = f", binarisation {data['binarize']}" if data["binarize"] != "none" else ""
    kind = f", {data['kind']}" if data.get("kind") and not values else ""
    return f"{data['name']}{size}{values}{kind}: {counts}{labelled}"


def _describe_fit(result: Mapping[str, Any]) -> str:
    fit, config = result["fit"], result["config"]
    optimizer = config["fit"].get("optimizer")
    rate = optimizer.get("init_args", {}).get("lr") if isinstance(optimizer, Mapping) else None
    best = fit.get("best_epoch")
    parts = [
        f"{_class_name(config['objective'])}, {fit['epochs']} epochs",
        f" (weights of epoch {best})" if best else "",
        f", {_class_name(optimizer)}" if optimizer else "",
        f" with learning rate {rate:g}" if rate else "",
        f"; seed {result['seed']}, on {fit['device']}",
    ]
    return "".join(parts)


def _class_name(setting: Any) -> str:
    path = setting["class_path"] if isinstance(setting, Mapping) else str(setting)
    return path.rsplit(".", 1)[-1]
