"""Kill commands at random moments, finish them, and compare with undisturbed ones.

    python tests/soak/soak.py --kills 200 --seed 0 --output tests/soak/results/soak.json

Each cycle takes a command on tiny data (``SCENARIOS``), kills it one to four times (SIGKILL mostly,
also SIGTERM and SIGINT), repeats it as a user would, and compares the folder with that of an
undisturbed run: weights, metrics and results, bit for bit. Half of the kills come at a random time,
half before a random file operation. A command that a kill makes impossible is a refusal. Commands
run in forked processes; ``--kills`` counts the signals that ended one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import random
import shlex
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import children
from children import Done, Kill, run_command, run_function

BASE = """\
data: {name: digits, binarize: dynamic, train: 120, valid: 60}
model:
  latent_dim: 2
  encoder: {class_path: MLP, init_args: {hidden: [8]}}
  decoder: {class_path: MLP, init_args: {hidden: [8]}}
fit: {epochs: 6, batch_size: 40, device: cpu, compile: false}
"""
FIT = ["fit", "--config", "tiny.yaml", "--run", "run"]
ANNEALING = [
    *("--annealing.num_chains", "2", "--annealing.num_temperatures", "12"),
    *("--annealing.num_steps", "2"),
]


@dataclass(frozen=True)
class Scenario:
    """A command, the commands that must have finished before it, and how a user repeats it.

    Attributes:
        argv: the command.
        before: commands that prepare the folder.
        resume: options added when the command is repeated.
    """

    argv: list[str]
    before: list[list[str]] = field(default_factory=list)
    resume: tuple[str, ...] = ("--resume",)


SCENARIOS = {
    "plain": Scenario(FIT),
    "compiled": Scenario([*FIT, "--fit.compile", "true", "--fit.epochs", "3"]),
    "early stopping": Scenario(
        [*FIT, "--fit.patience", "1", "--fit.epochs", "12", "--fit.optimizer.lr", "0.03"]
    ),
    "schedules": Scenario(
        [
            *(*FIT, "--fit.schedule", "ReduceLROnPlateau", "--fit.schedule.patience", "0"),
            *("--objective", "ELBO", "--objective.beta", "LinearWarmUp"),
            *("--objective.beta.epochs", "4", "--fit.checkpoint_every", "2"),
        ]
    ),
    "M2": Scenario(
        [
            *(*FIT, "--model", "SemiSupervisedVAE", "--model.latent_dim", "2"),
            *("--data.labelled", "40", "--objective", "EnumeratedELBO", "--fit.epochs", "3"),
        ]
    ),
    "VampPrior from data": Scenario(
        [
            *(*FIT, "--model.prior", "VampPrior", "--model.prior.components", "5"),
            *("--model.prior.start", "data"),
        ]
    ),
    "more epochs": Scenario([*FIT, "--fit.epochs", "9", "--resume"], [FIT], ()),
    "replaced run": Scenario(
        [*FIT, "--overwrite", "--fit.seed", "1"],
        [FIT, ["evaluate", "run", "--num-samples", "20", "--num-data", "20"]],
    ),
    "evaluate, AIS": Scenario(
        [
            *("evaluate", "run", "--num-samples", "30", "--num-data", "40"),
            *(arg.replace("--annealing", "--estimators.Annealing") for arg in ANNEALING),
        ],
        [FIT],
        (),
    ),
    "bdmc": Scenario(
        ["bdmc", "run", "--num-data", "30", "--num-samples", "20", *ANNEALING], [FIT], ()
    ),
}
#: Entries that differ between two equal runs: times, and the checksums of files with times.
VOLATILE = ("seconds", "compile_seconds", "started", "metrics", "state")


def digest(files: list[Path], scratch: Path) -> dict[str, str]:
    """Return a hash of each file's numbers, computed in a separate process."""
    if not files:
        return {}
    output = scratch / "digest.json"

    def compute() -> int:
        hashes = {str(file.relative_to(scratch)): _digest(file) for file in files}
        output.write_text(json.dumps(hashes), encoding="utf-8")
        return 0

    done = run_function(compute, scratch)
    assert done.status == 0, done.err
    found = json.loads(output.read_text(encoding="utf-8"))
    output.unlink()
    return found


def _digest(path: Path) -> str:
    import numpy as np
    import safetensors.numpy
    import xarray

    content: Any
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.numpy.load_file(path)
            content = {name: _plain(tensor) for name, tensor in tensors.items()}
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                content = {name: _plain(array) for name, array in arrays.items()}
        elif path.suffix == ".nc":
            with xarray.open_datatree(path, engine="h5netcdf") as tree:
                content = {
                    f"{node.path}/{name}": _plain(variable.values)
                    for node in tree.subtree
                    for name, variable in node.variables.items()
                }
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text(encoding="utf-8")
            parts = text.splitlines() if path.suffix == ".jsonl" else [text]
            content = [_stable(json.loads(part)) for part in parts]
            content[0].pop("checksum", None)  # of all entries
        else:
            content = path.read_bytes().hex()
    except Exception as error:
        content = f"unreadable: {error}"
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(values: Any) -> Any:
    data = values.tolist() if values.dtype == object else values.tobytes().hex()
    return [str(values.dtype), list(values.shape), data]


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _stable(v) for k, v in value.items() if k not in VOLATILE}
    return [_stable(item) for item in value] if isinstance(value, list) else value


def file_names(run: Path) -> set[str]:
    """Return the names of all files below a folder, except locks, which the kernel releases."""
    return {path.name for path in run.rglob("*") if path.suffix != ".lock"}


@dataclass
class Figures:
    """What has happened so far."""

    kills: Counter[str] = field(default_factory=Counter)
    scenarios: Counter[str] = field(default_factory=Counter)
    cycles: int = 0
    survived: int = 0
    resumed: int = 0
    refused: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)


class Soak:
    """Cycles of killed commands in a scratch folder."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch = scratch
        self.random = random.Random(seed)
        self.figures = Figures()
        self._undisturbed: dict[str, tuple[dict[str, str], Done, set[str]]] = {}
        self._prepared: dict[str, Path] = {}

    def run(self, kills: int) -> Figures:
        order: list[str] = []
        while self.figures.kills.total() < kills:
            if not order:  # every scenario before one is repeated
                order = self.random.sample(list(SCENARIOS), len(SCENARIOS))
            self.cycle(order.pop(), kills)
        return self.figures

    def cycle(self, name: str, kills: int) -> None:
        """Kill the command of a scenario a few times, finish it and compare."""
        expected, usual, files = self.undisturbed(name)
        folder = self.prepare(name)
        figures, scenario = self.figures, SCENARIOS[name]
        figures.cycles += 1
        figures.scenarios[name] += 1
        print(f"{figures.kills.total()} kills, next: {name}", file=sys.stderr, flush=True)
        left = min(self.random.randint(1, 4), kills - figures.kills.total())
        argv, history = scenario.argv, [f"{name}: pyro-vae {shlex.join(scenario.argv)}"]
        for _ in range(20):
            kill = self.draw_kill(usual) if left else None
            done = run_command(argv, folder, kill)
            history.append(f"{' '.join(map(str, kill or ()))} -> {done.status} {done.err[-300:]!r}")
            argv = self.repeat(scenario, folder)
            if done.hung:
                figures.refused.append(" | ".join([*history, "hung"]))
                break
            if kill is not None and done.status in (-kill.number, 128 + kill.number):
                left -= 1
                figures.kills[kill.number.name] += 1
                continue
            if done.status != 0:
                figures.refused.append(" | ".join(history))
                break
            if left:  # finished before the signal
                figures.survived += 1
            figures.resumed += 1
            self.compare(folder / "run", expected, files, history)
            break
        else:
            figures.refused.append(" | ".join([*history, "never finished"]))
        shutil.rmtree(folder)

    def repeat(self, scenario: Scenario, folder: Path) -> list[str]:
        """Return the command that a user gives after a kill."""
        argv = [arg for arg in scenario.argv if arg != "--overwrite"] + list(scenario.resume)
        if scenario.argv[0] != "fit":
            return argv
        if "--overwrite" in scenario.argv:
            # either the old run is still there, or the new one has started
            config = folder / "run" / "config.yaml"
            is_new = config.is_file() and "seed: 1\n" in config.read_text(encoding="utf-8")
            has_state = (folder / "run" / "state.pt").is_file()
            return argv if is_new and has_state else scenario.argv
        has_config = (folder / "run" / "config.yaml").is_file()
        if scenario.resume and has_config and self.random.random() < 0.5:
            return ["fit", "--run", "run", "--resume"]
        return argv

    def draw_kill(self, usual: Done) -> Kill:
        numbers = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
        number = self.random.choices(numbers, [4, 1, 1])[0]
        if self.random.random() < 0.5:
            return Kill(number, operation=self.random.randint(1, usual.operations))
        return Kill(number, after=self.random.uniform(0.0, usual.seconds))

    def compare(
        self, run: Path, expected: dict[str, str], files: set[str], history: list[str]
    ) -> None:
        found = self.digest(run)
        names = sorted(expected.keys() | found.keys())
        if changed := [name for name in names if expected.get(name) != found.get(name)]:
            self.figures.mismatches.append(" | ".join([*history, f"differ: {changed}"]))
        if left := sorted(file_names(run) - files):
            self.figures.leftovers.append(" | ".join([*history, f"left: {left}"]))

    def undisturbed(self, name: str) -> tuple[dict[str, str], Done, set[str]]:
        """Return the hashes, the command and the files of a scenario that is left alone."""
        if name not in self._undisturbed:
            folder = self.prepare(name)
            done = run_command(SCENARIOS[name].argv, folder)
            assert done.status == 0, (name, done)
            files = file_names(folder / "run")
            self._undisturbed[name] = (self.digest(folder / "run"), done, files)
            shutil.rmtree(folder)
        return self._undisturbed[name]

    def digest(self, run: Path) -> dict[str, str]:
        """Return the hashes of the files that the commands write, except the training state."""
        suffixes = (".yaml", ".json", ".jsonl", ".safetensors", ".nc")
        files = sorted(path for path in run.iterdir() if path.suffix in suffixes)
        return digest(files, run)

    def prepare(self, name: str) -> Path:
        """Return a fresh folder after the commands that precede the scenario."""
        before = SCENARIOS[name].before
        key = json.dumps(before)
        if key not in self._prepared:
            folder = self.scratch / f"prepared-{len(self._prepared)}"
            folder.mkdir()
            (folder / "tiny.yaml").write_text(BASE, encoding="utf-8")
            for argv in before:
                done = run_command(argv, folder)
                assert done.status == 0, (argv, done)
            self._prepared[key] = folder
        folder = self.scratch / "work"
        shutil.copytree(self._prepared[key], folder)
        return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    children.preload(BASE)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        figures = Soak(Path(scratch), arguments.seed).run(arguments.kills)
    entries = {
        "command": shlex.join(["python", "tests/soak/soak.py", *sys.argv[1:]]),
        "processor": processor(),
        "kills": figures.kills.total(),
        "signals": dict(figures.kills),
        "cycles": figures.cycles,
        "scenarios": dict(figures.scenarios),
        "resumed": figures.resumed,
        "finished before the signal": figures.survived,
        "refused": figures.refused,
        "mismatches": figures.mismatches,
        "leftovers": figures.leftovers,
    }
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return int(bool(figures.refused or figures.mismatches or figures.leftovers))


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    sys.exit(main())
