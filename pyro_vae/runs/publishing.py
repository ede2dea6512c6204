"""Upload of runs to the Hugging Face hub, with a model card."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from ..core import files
from ..evaluation import EVALUATIONS
from .hub import HUB_PREFIX, SHARED_FILES, import_hub
from .run import Run

__all__ = ["make_card", "push"]

#: Settings that are paths on the machine where the run was trained.
_PATHS = ("data.path", "data.root", "data.valid", "data.test", "start_from", "plugin")


def push(
    run: Run | Path | str, repository: str, *, private: bool = False, message: str | None = None
) -> str:
    """Upload a finished run to a model repository of the Hugging Face hub, with a model card.

    The weights, the configuration, the metrics and the results on the data of the run are
    uploaded; neither data nor report, explorer, logs, nor the checkpoint of training, which is a
    pickle. Of paths only the last part is kept. The card is made from the files of the run by
    :func:`make_card`. An existing repository is updated.

    Arguments:
        run: the run, or its folder.
        repository: ``USER/NAME``.
        private: whether a new repository is private.
        message: the commit message.

    Returns:
        The address of the commit.

    Raises:
        RunError: if the run is not finished, or if its files do not belong together.
        ModuleNotFoundError: if ``huggingface_hub`` is not installed.
        ValueError: if ``repository`` is not of the form ``USER/NAME``.
    """
    hub = import_hub()
    run = run if isinstance(run, Run) else Run(run)
    if repository.startswith(HUB_PREFIX):
        repository = repository.removeprefix(HUB_PREFIX)
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise ValueError(f"expected a repository USER/NAME; got {repository!r}")
    run.program  # noqa: B018  raises if the run is not finished or its files do not belong together
    with tempfile.TemporaryDirectory() as temporary, run.exclusive("report"):
        folder = Path(temporary)
        for name in SHARED_FILES:
            if (run.folder / name).is_file():
                shutil.copy2(run.folder / name, folder / name)
        _remove_paths(Run(folder))
        files.atomic_write_text(folder / "README.md", make_card(run, repository))
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            commit_message=message or f"Upload the run {run.name}",
            delete_patterns="*.nc",
        )
    return str(commit.commit_url)


def make_card(run: Run, repository: str) -> str:
    """Return the model card of a run: data, recipe, every result, and what was not measured.

    Results are those of the run's files, as the command line prints them, with their errors and
    warnings; nothing else is claimed.
    """
    result, settings = run.read_result(), run.experiment.settings_dict()
    data, fit, model = result["data"], result["fit"], settings["model"]
    arguments = model.get("init_args", model) if "class_path" in model else model
    parts = [(n, arguments[n]) for n in ("prior", "likelihood", "posterior") if n in arguments]
    sizes = data["sizes"]
    lines = [
        "---",
        "library_name: pyro-vae",
        "tags: [variational-autoencoder, pyro, probabilistic-programming]",
        "---",
        "",
        f"# {repository.partition('/')[2]}",
        "",
        f"A {run.experiment.program.__name__} trained by "
        f"{type(run.experiment.objective).__name__}, written by pyro-vae "
        f"{result['versions']['pyro-vae']} from the files of the run.",
        "",
        "```python",
        "import pyro_vae as pv",
        "",
        f'run = pv.load("{HUB_PREFIX}{repository}")',
        "program = run.program",
        "```",
        "",
        "## Data",
        "",
        f"{data['name']}: {sizes['train']} examples for training, {sizes['valid']} for "
        f"validation, {sizes['test']} for tests; values {data['values']}, binarisation "
        f"{data['binarize']}; SHA-256 `{data['checksum']}`. The data are not part of this "
        f"repository.",
        "",
        "## Recipe",
        "",
        *(f"- {name}: {_class_name(value)}" for name, value in parts),
        f"- latent variables: {arguments.get('latent_dim', arguments.get('latent_dims'))}",
        f"- {fit['parameters']} parameters, {fit['epochs']} epochs, {fit['steps']} steps, seed "
        f"{result['seed']}, on {fit['device']}",
        "- all settings: `config.yaml`",
        "",
        "## Results",
        "",
    ]
    measured = [name for name in EVALUATIONS if run.evaluation_file(name).is_file()]
    for name in measured:
        entry = result[name]
        lines += [
            f"### {name}",
            "",
            f"On {entry['num_data']} examples"
            + (f" of the {entry['split']} split" if "split" in entry else "")
            + ":",
            "",
            "```",
            str(run.read_evaluation(name)),
            "```",
            "",
        ]
    missing = [name for name in EVALUATIONS if name not in measured]
    lines += ["## Limits", ""]
    if not measured:
        lines += ["- This model has not been evaluated: nothing is known about its likelihood."]
    if missing:
        lines += [f"- Not measured: {', '.join(missing)}."]
    lines += [
        "- Log-likelihoods hold for these data with this preprocessing; they cannot be compared "
        "with those of other preprocessing.",
        "- Results on data other than those above are not known.",
    ]
    return "\n".join(lines) + "\n"


def _remove_paths(run: Run) -> None:
    """Keep the last part of paths in the files of a copy of a run, and no results of new data."""
    result = run.read_result()
    for name in [name for name in result if name.partition(".")[0] in EVALUATIONS and "." in name]:
        del result[name]
    settings = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    for tree in (settings, result["config"]):
        for key in _PATHS:
            *groups, name = key.split(".")
            group: Any = tree
            for part in groups:
                group = group.get(part, {})
            value = group.get(name)
            if isinstance(value, str):
                group[name] = Path(value).name
            elif isinstance(value, list):
                group[name] = [Path(v).name for v in value]
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    files.atomic_write_text(run.config, text)
    run._write_result(run.result, result)


def _class_name(value: Any) -> str:
    """Return the name of a component in the settings, with its own arguments."""
    if not isinstance(value, dict):
        return str(value)
    arguments = {k: v for k, v in value.get("init_args", {}).items() if not isinstance(v, dict)}
    listed = ", ".join(f"{name}={argument}" for name, argument in arguments.items())
    return value["class_path"].rpartition(".")[2] + (f"({listed})" if listed else "")
