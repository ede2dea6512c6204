"""Feed damaged and hostile configurations and run files to the commands.

    python tests/soak/fuzz.py --inputs 500 --seed 0 --output tests/soak/results/fuzz.json

Each input changes one configuration, or one file of a finished run, and runs one command on a fresh
copy. It passes if the command ends with status 1 or 2, one sentence and every file as it was, or if
it succeeds with the output and the numbers of the unchanged input (the change does not matter, as
that of a comment), or if the command mends the run. Damaged configurations may succeed with other
numbers, since they may be valid. Nothing named by a file may be imported. Commands run in forked
processes with a memory limit.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import re
import resource
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import children
from children import Done, run_function
from soak import digest, processor

CONFIG = """\
# a comment
data: {name: digits, binarize: dynamic, train: 60, valid: 20}
model:
  latent_dim: 2
  prior: {class_path: MixtureOfNormals, init_args: {components: 3}}
  encoder: {class_path: MLP, init_args: {hidden: [8], activation: ReLU}}
  decoder: {class_path: MLP, init_args: {hidden: [8]}}
objective: {class_path: ELBO, init_args: {beta: {class_path: LinearWarmUp, init_args: {epochs: 2}}}}
fit: {epochs: 1, batch_size: 30, device: cpu, compile: false}
"""
TRAIN = ["fit", "--config", "tiny.yaml", "--run"]
ANNEALING = [
    *("--annealing.num_chains", "2", "--annealing.num_temperatures", "4"),
    *("--annealing.num_steps", "2"),
]
BDMC = ["bdmc", "run", "--num-data", "4", "--num-samples", "20", *ANNEALING]
#: Commands on a finished run, with how often they are drawn.
COMMANDS: dict[str, tuple[list[str], int]] = {
    "evaluate": (["evaluate", "run", "--num-samples", "10", "--num-data", "20"], 5),
    "compare": (["compare", "run", "other"], 5),
    "resume": (["fit", "--run", "run", "--resume"], 5),
    "more epochs": (["fit", "--run", "run", "--resume", "--fit.epochs", "2"], 4),
    "bdmc": (BDMC, 2),
    "sample": (["sample", "run"], 4),
    "encode": (["encode", "run", "--num-data", "10", "--output", "codes.npz"], 4),
    "start from": ([*TRAIN, "new", "--start_from", "run"], 2),
    "report": (["report", "run"], 1),
}
#: A module that shows that it was imported, beside the configuration and inside the run.
CANARY = 'open("{folder}/executed", "w").close()\n'
#: Bytes of memory that a command may map beyond those of this process.
MEMORY = 3 * 2**30
SENTENCE = re.compile(r"pyro-vae: [^\n]+\n")


class Trap:
    """Creates the file that the canary creates, when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (os.system, (f"touch {shlex.quote(str(self.folder / 'executed'))}",))


class Expected(NamedTuple):
    """Effects of a command on the unchanged run.

    Attributes:
        out: its output.
        hashes: the hashes of all files after it.
        written: the files that it changes.
    """

    out: str
    hashes: dict[str, str]
    written: set[str]


def hostile_yaml(text: str, rng: random.Random) -> tuple[str, str]:
    """Return a YAML text with one hostile or broken part, and its description."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefghi", "bcdefghij", strict=True)
    )
    lines = text.splitlines(keepends=True)
    row = rng.randrange(len(lines))
    token = rng.choice(re.findall(r"\w+", text))
    values = ["null", "[]", "{}", "-1", ".inf", ".nan", "1e400", "'\\0'", "canary.Thing", "3.5"]
    value = rng.choice(values)
    word = list(re.finditer(r"(?<=: )[\w.]+", text))
    spot = rng.choice(word)
    choices = {
        "alias bomb": bomb + text,
        "brackets": text + "x: " + "[" * rng.choice([60, 5000, 100_000]),
        "duplicate line": "".join([*lines[: row + 1], *lines[row:]]),
        "missing line": "".join([*lines[:row], *lines[row + 1 :]]),
        "python tag": text + "x: !!python/object/apply:os.system ['touch executed']\n",
        "plugin": re.sub(r"plugin:.*\n(?:- .*\n)*", "", text) + "plugin: canary\n",
        "class path": text.replace(token, rng.choice(["canary.Thing", "os.system", "canary"]), 1),
        "other value": text[: spot.start()] + value + text[spot.end() :],
        "misspelt": text.replace(token, token[:-1] + "x", 1),
        "escape sequence": text + 'plugin: "\\e[31mcanary"\n',
        "comment": text + "# another comment\n",
        "control character": text[: spot.start()] + "\x1b[31m" + text[spot.start() :],
        "long number": text[: spot.start()] + "9" * 5000 + text[spot.end() :],
    }
    name = rng.choice(list(choices))
    return choices[name], name


def hostile_json(text: str, rng: random.Random) -> tuple[str, str]:
    """Return a JSON text with one hostile or broken part, and its description."""
    numbers = list(re.finditer(r"(?<=: )-?\d[\d.e-]*", text))
    spot = rng.choice(numbers)
    choices = {
        "brackets": "[" * 100_000,
        "other type": rng.choice(["[]", "3", "null", '"text"', "{}", '{"x": 1}']),
        "other number": text[: spot.start()] + "7" + text[spot.end() :],
        "null": text[: spot.start()] + "null" + text[spot.end() :],
        "duplicate key": text.replace("{", '{"x": 1, "x": 2, ', 1),
        "long number": text[: spot.start()] + "9" * 5000 + text[spot.end() :],
    }
    name = rng.choice(list(choices))
    return choices[name], name


class Fuzzer:
    """Inputs in a scratch folder."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch = scratch
        self.random = random.Random(seed)
        self.work = scratch / "work"
        self.pristine = scratch / "pristine"
        self.failures: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self._expected: dict[str, Expected] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Train two runs, one of which has all kinds of files."""
        self.pristine.mkdir()
        (self.pristine / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
        evaluate, _ = COMMANDS["evaluate"]
        commands = [[*TRAIN, "run"], evaluate, ["report", "run"], ["sample", "run"]]
        commands += [[*TRAIN, "other", "--fit.seed", "1"]]
        commands += [["evaluate", "other", *evaluate[2:]], ["report", "other"], ["sample", "other"]]
        commands += [[BDMC[0], "other", *BDMC[2:]], BDMC]
        for argv in commands:
            done = self.execute(argv, self.pristine)
            assert done.status == 0, (argv, done)

    def execute(self, argv: list[str], folder: Path) -> Done:
        def command() -> int:
            from pyro_vae.cli.app import main

            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            # `python -m pyro_vae` and a notebook import from the current folder
            sys.path.insert(0, str(folder))
            return main(argv)

        return run_function(command, folder)

    def expected(self, name: str) -> Expected:
        """Return the effects of a command on the unchanged run."""
        if name not in self._expected:
            self._copy()
            before = _snapshot(self.work)
            done = self.execute(COMMANDS[name][0], self.work)
            assert done.status == 0, (name, done)
            after = _snapshot(self.work)
            written = {path for path in after if after[path] != before.get(path)}
            self._expected[name] = Expected(done.out, self._hash(after), written)
        return self._expected[name]

    def _hash(self, paths: Collection[str]) -> dict[str, str]:
        """Return the hashes of files by name, except those of training states."""
        return digest([self.work / p for p in paths if not p.endswith(".pt")], self.work)

    def _copy(self) -> None:
        if self.work.exists():
            shutil.rmtree(self.work)
        shutil.copytree(self.pristine, self.work)
        for folder in (self.work, self.work / "run"):
            text = CANARY.format(folder=self.work)
            (folder / "canary.py").write_text(text, encoding="utf-8")

    def run(self, inputs: int) -> None:
        for number in range(inputs):
            if self.random.random() < 0.3:
                self.fuzz_configuration(number)
            else:
                self.fuzz_run(number)

    def fuzz_configuration(self, number: int) -> None:
        self._copy()
        file = self.work / "tiny.yaml"
        if self.random.random() < 0.3:
            kind = self.damage_bytes(file)
        else:
            text, kind = hostile_yaml(CONFIG, self.random)
            file.write_text(text, encoding="utf-8")
        self.kinds[f"tiny.yaml {kind}"] += 1
        argv = [*TRAIN, "new"]
        if self.random.random() < 0.5:
            argv += ["--plugin", "json"]
        before = _snapshot(self.work)
        done = self.execute(argv, self.work)
        problem = self.check(done, before, None)
        self.report(number, f"tiny.yaml {kind}", argv, done, problem)

    def fuzz_run(self, number: int) -> None:
        names = list(COMMANDS)
        name = self.random.choices(names, [share for _, share in COMMANDS.values()])[0]
        expected = self.expected(name)
        self._copy()
        files = sorted(p for p in (self.work / "run").rglob("*") if p.is_file())
        file = self.random.choice([p for p in files if p.name != "canary.py"])
        kind = self.damage(file)
        what = f"{file.relative_to(self.work)} {kind}"
        self.kinds[what.replace("run/", "")] += 1
        before = _snapshot(self.work)
        done = self.execute(COMMANDS[name][0], self.work)
        self.report(number, what, COMMANDS[name][0], done, self.check(done, before, expected))

    def damage(self, file: Path) -> str:
        """Change a file of a run and return how."""
        texts = {".yaml": hostile_yaml, ".json": hostile_json}
        kinds = ["bytes", "bytes", "swapped", "removed", "foreign"]
        kind = self.random.choice([*kinds, "text"] if file.suffix in texts else kinds)
        twin = self.work / "other" / file.relative_to(self.work / "run")
        if kind == "text":
            text, kind = texts[file.suffix](file.read_text(encoding="utf-8"), self.random)
            file.write_text(text, encoding="utf-8")
        elif kind == "swapped" and twin.is_file():
            shutil.copy(twin, file)
        elif kind == "removed":
            file.unlink()
        elif kind == "foreign":
            others = sorted(p for p in (self.work / "run").rglob("*") if p.suffix != file.suffix)
            other = self.random.choice([p for p in others if p.is_file()])
            content, kind = other.read_bytes(), f"foreign ({other.suffix})"
            if self.random.random() < 0.4:
                content, kind = pickle.dumps(Trap(self.work)), "foreign (pickle)"
            file.write_bytes(content)
        else:
            kind = self.damage_bytes(file)
        return kind

    def damage_bytes(self, file: Path) -> str:
        content, rng = bytearray(file.read_bytes()), self.random
        kind = rng.choice(["emptied", "truncated", "flipped", "flipped", "overwritten", "appended"])
        if not content:
            kind = "appended"
        elif kind == "emptied":
            content = bytearray()
        elif kind == "truncated":
            del content[rng.randrange(len(content)) :]
        elif kind == "flipped":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == "overwritten":
            start = rng.randrange(len(content))
            size = min(rng.randint(1, 64), len(content) - start)
            content[start : start + size] = rng.randbytes(size)
        if kind == "appended":
            content += rng.randbytes(rng.randint(1, 64))
        file.write_bytes(content)
        return kind

    def check(
        self,
        done: Done,
        before: dict[str, bytes],
        expected: Expected | None,
    ) -> str | None:
        """Return what is wrong with the end of a command; count how it ended."""
        if (self.work / "executed").exists():
            return "code was executed"
        if done.hung:
            return "hung"
        if "Traceback" in done.err or "this is a fault of" in done.err:
            return "traceback"
        if done.status in (1, 2):
            self.outcomes["refused in one sentence"] += 1
            error = done.err[max(done.err.find("pyro-vae: "), 0) :]
            if not SENTENCE.fullmatch(error):
                return "not one sentence"
            if "\x1b" in error:
                return "control characters of a file in the sentence"
            after = _snapshot(self.work)
            changed = sorted(
                k for k in before.keys() | after.keys() if before.get(k) != after.get(k)
            )
            return f"files changed: {changed}" if changed else None
        if done.status != 0:
            return f"status {done.status}"
        if expected is None:
            self.outcomes["valid configuration"] += 1
            return None
        after = _snapshot(self.work)
        written = {path for path in after if after[path] != before.get(path)} | expected.written
        if done.out != expected.out:  # if the command has mended the run, its files are as usual
            written = {*expected.hashes} - {"run/canary.py", "canary.py"}
            if "run/result.json" not in before:  # then it lacks the entries of the evaluations
                written.remove("run/result.json")
        found = self._hash(written & after.keys())
        if differ := sorted(p for p in written if found.get(p) != expected.hashes.get(p)):
            return f"other output or numbers in silence: {differ}"
        self.outcomes["no difference" if done.out == expected.out else "mended"] += 1
        return None

    def report(
        self, number: int, what: str, argv: list[str], done: Done, problem: str | None
    ) -> None:
        if problem is not None:
            self.outcomes["failed"] += 1
            tail = f"{done.out[-200:]!r} {done.err[-400:]!r}"
            line = f"input {number}: {what}: pyro-vae {shlex.join(argv)}: {problem}: {tail}"
            self.failures.append(line)
            print(line, file=sys.stderr, flush=True)


def _snapshot(folder: Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    children.preload(CONFIG)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        fuzzer = Fuzzer(Path(scratch), arguments.seed)
        fuzzer.run(arguments.inputs)
    entries = {
        "command": shlex.join(["python", "tests/soak/fuzz.py", *sys.argv[1:]]),
        "processor": processor(),
        "inputs": arguments.inputs,
        "outcomes": dict(fuzzer.outcomes),
        "kinds": dict(sorted(fuzzer.kinds.items())),
        "failures": fuzzer.failures,
    }
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return int(bool(fuzzer.failures))


if __name__ == "__main__":
    sys.exit(main())
