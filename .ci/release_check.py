"""Resolve all extras; try the wheel in fresh environments, with the lowest and highest versions.

Each environment runs the commands of a newcomer and some tests on the installed wheel, without
the source tree. Run by ``make release-check``; needs a package index and ten minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("data", "own")
PYTHONS = ("3.11", "3.12", "3.13")
#: A CPU build of another release may not exist, so these keep the versions of constraints.txt.
PINNED = ("torch", "torchvision")
COMMANDS = (
    "fit --data.name mnist5k --data.binarize dynamic --data.valid 4400 --model.latent_dim 2"
    " --fit.epochs 2 --run first",
    "evaluate first --num-data 30 --num-samples 60",
    "latents first --num-data 30",
    "calibrate first --num-data 20 --num-simulated 20 --num-samples 30 --num-replicates 10",
    "report first",
    "explore first",
    "export first --output exported",
)
TESTS = (
    "tests/evaluation/test_bounds.py",
    "tests/data/test_folders.py",
    "tests/data/test_table_files.py",
    "tests/cli/test_evaluation_commands.py",
)


def run(*command: object, folder: Path | None = None) -> None:
    """Run a command; a failure ends the check."""
    print("$", *command, flush=True)
    threads = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    subprocess.run([*map(str, command)], cwd=folder, env=os.environ | threads, check=True)


def make_venv(folder: Path) -> Path:
    """Return the folder of the programs of a new environment."""
    run(sys.executable, "-m", "venv", folder)
    return folder / "bin"


def build(folder: Path) -> Path:
    """Build the source archive and, from it, the wheel; compare its files with those of git."""
    programs = make_venv(folder / "build")
    run(programs / "pip", "install", "--quiet", "build")
    run(programs / "python", "-m", "build", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    tracked = subprocess.check_output(["git", "ls-files", "pyro_vae"], cwd=ROOT, text=True)
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("pyro_vae/")}
    if packed != {*tracked.splitlines()}:
        sys.exit(f"files in git or in the wheel only: {packed ^ {*tracked.splitlines()}}")
    return wheel


def resolve(folder: Path) -> None:
    """Resolve all extras together for each supported Python, without downloading them."""
    programs = make_venv(folder / "resolve")
    run(programs / "pip", "install", "--quiet", "uv")
    for python in PYTHONS:
        for resolution in ("lowest-direct", "highest"):
            options = ("--python-version", python, "--resolution", resolution, "--all-extras")
            output = folder / f"{python}-{resolution}.txt"
            project = ROOT / "pyproject.toml"
            run(programs / "uv", "pip", "compile", "--quiet", *options, "-o", output, project)


def lowest() -> list[str]:
    """Return the lower bounds of ``pyproject.toml`` as exact versions, without those of torch."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"]]
    for extra in EXTRAS:
        texts += project["optional-dependencies"][extra]
    return [
        f"{requirement.name}=={specifier.version}"
        for requirement in map(Requirement, texts)
        for specifier in requirement.specifier
        if specifier.operator == ">=" and requirement.name not in PINNED
    ]


def check(wheel: Path, folder: Path, constraints: list[str], tests: bool) -> None:
    """Install the wheel and run the commands and the tests."""
    programs = make_venv(folder)
    file = folder / "constraints.txt"
    file.write_text("\n".join(constraints), encoding="utf-8")
    needed = ["pytest", "pytest-timeout"] if tests else []
    target = f"{wheel}[{','.join(EXTRAS)}]"
    run(programs / "pip", "install", "--constraint", file, target, *needed)
    work = folder / "work"
    work.mkdir()
    located = "import pyro_vae as pv; print(pv.__version__, pv.__file__)"
    run(programs / "python", "-P", "-c", located, folder=work)
    for command in COMMANDS:
        run(programs / "pyro-vae", *command.split(), folder=work)
    if tests:
        # -P: the installed package, not the one beside the tests. Old releases of libraries warn
        # of newer ones. ArviZ is not a dependency
        options = ("-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default")
        quiet = ("--disable-warnings", "-k", "not arviz")
        run(programs / "python", "-P", "-m", "pytest", *options, *quiet, *TESTS, folder=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", default=["lowest", "highest"], help="which to try")
    parser.add_argument("--torch", help="version of torch instead of that in constraints.txt")
    parser.add_argument("--no-tests", dest="tests", action="store_false")
    options = parser.parse_args()
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    fixed = [line for line in lines if line.split("==")[0] in PINNED]
    if options.torch:
        fixed = [f"torch=={options.torch}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        resolve(folder)
        wheel = build(folder)
        for versions in options.versions:
            constraints = fixed + (lowest() if versions == "lowest" else [])
            check(wheel, folder / versions, constraints, options.tests)
    print("release check passed:", *options.versions)


if __name__ == "__main__":
    main()
