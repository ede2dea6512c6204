"""The command line: options, help, and one sentence for every invalid input."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import streams
import torch
import yaml
from run_folders import TINY, assert_error, snapshot

from pyro_vae.cli import app
from pyro_vae.config.plugins import PluginError
from pyro_vae.core import validation
from pyro_vae.runs.run import Run, load


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A trained and evaluated run, copied by tests that damage it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    run = str(folder / "run")
    assert app.main(["fit", "--config", str(folder / "tiny.yaml"), "--run", run]) == 0
    assert app.main(["evaluate", run, "--num-samples", "10", "--ks", "[5]"]) == 0
    return folder


@pytest.fixture
def workdir(finished, tmp_path, monkeypatch) -> Path:
    """The current folder, with ``tiny.yaml`` and a finished ``run``."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FIT = ["fit", "--config", "tiny.yaml", "--run", "new"]

BAD_OPTIONS = {
    "data set": (
        "--data.name digts",
        "expected data set to be one of array, .*, digits, .*; got 'digts'; did you mean digits\\?",
    ),
    "group's option": (
        "--data.nmae x",
        "unknown option --data.nmae; .* --data.name\\?",
    ),
    "abbreviation": ("--resum", "unknown option --resum; did you mean --resume\\?"),
    "choice": (
        "--data.binarize dynamc",
        "expected data.binarize to be dynamic, static, threshold or none; got 'dynamc'; "
        "did you mean dynamic\\?",
    ),
    "integer": ("--fit.epochs many", "expected fit.epochs to be an integer; got 'many'"),
    "no epochs": ("--fit.epochs 0", "expected epochs to be a positive integer; got 0"),
    "prior": (
        "--model.prior VampPriorr",
        "expected model.prior to be one of .*MixtureOfNormals, .*VampPrior, .*or a class "
        "of a --plugin as module.Class; got 'VampPriorr'; did you mean VampPrior\\?",
    ),
    "abstract prior": (
        "--model.prior Prior",
        "expected model.prior to be one of .*; got 'Prior'.*",
    ),
    "prior's option": (
        "--model.prior MixtureOfNormals --model.prior.componets 3",
        "unknown option --model.prior.componets; did you mean --model.prior.components\\?",
    ),
    "prior's value": (
        "--model.prior MixtureOfNormals --model.prior.components many",
        "expected model.prior.components to be an integer; got 'many'",
    ),
    "union": (
        "--model.likelihood Gaussian --model.likelihood.scale wide",
        "expected model.likelihood.scale to be a number, learned, per_pixel, decoded, "
        "decoded_variance or optimal; got 'wide'",
    ),
    "activation": (
        "--model.encoder.activation ReLUU",
        "expected model.encoder.activation to be the name of a class; got 'ReLUU'; "
        "did you mean ReLU\\?",
    ),
    "optimizer": (
        "--fit.optimizer Adagard",
        "expected fit.optimizer to be one of .*Adagrad, .*; got 'Adagard'; did you mean Adagrad\\?",
    ),
    "schedule's needs": (
        "--fit.schedule StepLR",
        "expected fit.schedule.step_size; got nothing: see `pyro-vae fit --help`",
    ),
    "not a prior": (
        "--model.prior torch.nn.Linear",
        "expected model.prior to be a concrete subclass of Prior; got 'torch.nn.Linear'",
    ),
    "unknown class": (
        "--model.prior pyro_vae.priors.VampPriorr",
        "expected model.prior to be the path of a class; module pyro_vae.priors has no "
        "'VampPriorr'; did you mean VampPrior\\?",
    ),
    "option given twice": ("--run run", "expected --run once; got it 2 times"),
    "option spelt twice": (
        "--model.latent_dim 3 --model.latent-dim=3",
        "expected --model.latent-dim once; got it .*",
    ),
    "positional": ("stray", "expected only options and their values; got unexpected 'stray'"),
    "no plugin": (
        "--plugin no_such_plugin",
        "expected plugin 'no_such_plugin' to be a Python file, or a module in the current folder "
        "or installed; it could not be imported: .*",
    ),
    "no file": (
        "--data.name array --data.path none.npy",
        "expected a .npy or .npz file at data.path; found none at .*none.npy",
    ),
    "no path": ("--data.name array", "data set 'array' needs data.path, .*"),
    "no frey": (
        "--data.name frey --data.root nowhere",
        "expected the Frey Face file at .*; found none: download it from https://.* and set "
        "data.path to .*",
    ),
    "grey to a Bernoulli": (
        "--data.binarize none",
        "Bernoulli scores only 0/1; got 17 levels \\(values in \\[0, 1\\]\\): set data.binarize to "
        "dynamic, static or threshold, or use .*",
    ),
    "too large a split": (
        "--data.valid 2000",
        "expected data.valid to be a fraction below 1 or a number of examples below 1617; got 2000",
    ),
    "negative split": (
        "--data.valid -0.1",
        "expected data.valid to be a fraction below 1 or a number of examples below 1617; got -0.1",
    ),
    "infinite split": ("--data.test .inf", "expected data.test to be a fraction .*; got inf"),
    "no number": ("--data.valid .nan", "expected data.valid to be a fraction .*; got nan"),
    "fractional number": ("--data.valid 1.5", "expected data.valid to be a fraction .*; got 1.5"),
    "optimizer of sparse gradients": (
        "--fit.optimizer SparseAdam",
        "expected an optimizer that can step the parameters; got SparseAdam: SparseAdam does .*",
    ),
    "schedule's argument": (
        "--fit.schedule StepLR --fit.schedule.step_size 0",
        "invalid arguments of the learning rate schedule, for 1 epochs: integer modulo by zero",
    ),
    "too short a schedule": (
        "--fit.epochs 7 --fit.schedule OneCycleLR --fit.schedule.max_lr 0.1 "
        "--fit.schedule.total_steps 6",
        "invalid arguments of the learning rate schedule, for 7 epochs: Tried to step 7 times.*",
    ),
    "not a network": (
        "--model.encoder torch.nn.Sequential",
        "expected a class or another factory encoder.*; the call failed with tuple is not .*",
    ),
    "too large a model": (
        "--model.latent_dim 1000000000000",
        "expected 59,605 GiB of free memory for a tensor; .*: use a smaller model, .*",
    ),
    "overflowing size": (
        "--model.latent_dim 1000000000000000000",
        "expected tensors of less than 2⁶³ bytes; got .*",
    ),
    "too large a number": (
        "--model.latent_dim 10000000000000000000",
        "expected latent_dim to be at most 2⁶³ − 1; got 10000000000000000000",
    ),
    "too large a seed": (
        "--fit.seed 10000000000000000000",
        "expected seed to be at most 2⁶³ − 1; got 1.*",
    ),
    "learning rate": (
        "--fit.optimizer.lr -1",
        "invalid arguments of the optimizer: Invalid learning rate: -1.0",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option(case, workdir, capsys):
    options, message = BAD_OPTIONS[case]
    assert_error(capsys, [*FIT, *options.split()], message, workdir)


@pytest.mark.parametrize("case", ["learning rate", "grey to a Bernoulli", "no file"])
def test_bad_option_keeps_the_run_it_would_replace(case, workdir, capsys):
    options, message = BAD_OPTIONS[case]
    argv = ["fit", "--config", "tiny.yaml", "--run", "run", "--overwrite", *options.split()]
    assert_error(capsys, argv, message, workdir)


BAD_YAML = {
    "argument of another class": (
        {"model": {"prior.components": 7}},
        "unknown option --model.prior.components, which StandardNormal does not have: set "
        "model.prior.class_path to MixtureOfNormals or VampPrior",
    ),
    "argument without a class": (
        {"model": {"likelihood": {"scale": "fixed"}}},
        "unknown option --model.likelihood.scale, which Bernoulli does not have: set "
        "model.likelihood.class_path to Gaussian, Laplace, LogNormal or StudentT",
    ),
    "option without its group": (
        {"latent_dim": 2},
        "unknown option --latent-dim; did you mean --model.latent_dim\\?",
    ),
    "option": (
        {"data": {"binarise": "dynamic"}},
        "unknown option --data.binarise; .*binarize\\?",
    ),
    "group": ({"modle": {"latent_dim": 2}}, "unknown option --modle.*"),
    "not a group": (
        {"fit": 3},
        "expected fit to be a mapping of options; got 3",
    ),
    "class": ({"objective": "ELBOO"}, "expected objective to be one of CIWAE, .* mean ELBO\\?"),
    "class's option": (
        {"model": {"encoder": {"class_path": "MLP", "init_args": {"hiden": [3]}}}},
        "unknown option --model.encoder.hiden; did you mean --model.encoder.hidden\\?",
    ),
    "misspelt init_args": (
        {"model": {"encoder": {"class_path": "MLP", "init_arg": {"hidden": [3]}}}},
        "unknown option --model.encoder.init_arg.*",
    ),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_yaml(case, workdir, capsys):
    changes, message = BAD_YAML[case]
    tree = yaml.safe_load(TINY)
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    Path("tiny.yaml").write_text(yaml.safe_dump(tree))
    assert_error(capsys, FIT, message, workdir)


@pytest.mark.parametrize("text", ["data: {name: [", "just words", "- a\n- b\n", ""])
def test_file_without_a_configuration(text, workdir, capsys):
    Path("tiny.yaml").write_text(text)
    assert_error(
        capsys, FIT, "expected tiny.yaml to (be YAML|have keys such as data and model).*", workdir
    )


def test_binarize_has_no_default(workdir, capsys):
    Path("tiny.yaml").write_text(TINY.replace(", binarize: dynamic", ""))
    assert_error(
        capsys,
        FIT,
        "expected data.binarize to be dynamic, static, threshold or none; got nothing: see "
        "`pyro-vae fit --help`",
        workdir,
    )


ARRAYS = {
    "infinite": (
        np.array([[0.0, np.inf]] * 20),
        "data set 'array': .* finite values; got 20 infinite of 40",
    ),
    "empty": (np.zeros((0, 3)), "expected numbers of shape \\(N ≥ 1, …\\) in .*; got float64 .*"),
    "text": (np.array(["a", "b"]), "expected numbers of shape .*; got <U1 of shape \\(2,\\)"),
    "pickled": (
        np.array([{}, None]),
        "expected numbers or strings in .*x.npy; got Python objects, whose code would be .*",
    ),
    "negative counts": (
        np.arange(-20, 20).reshape(20, 2),
        # the seed decides which of them are in the training split
        "Bernoulli scores only 0/1; got real numbers from -\\d+ to \\d+, \\d\\d of them neg.*",
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_bad_array(case, workdir, capsys):
    values, message = ARRAYS[case]
    np.save("x.npy", values)
    data = ["--data.name", "array", "--data.path", "x.npy", "--data.binarize", "none"]
    assert_error(capsys, [*FIT, *data], message, workdir)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY\x01", b"hello"])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_file_without_an_array(content, name, workdir, capsys):
    Path(name).write_bytes(content)
    data = ["--data.name", "array", "--data.path", name]
    message = (
        "expected .* to be a .npy or .npz file of numbers; the file is damaged or has other "
        "contents"
    )
    assert_error(capsys, [*FIT, *data], message, workdir)


def test_missing_npz_key(workdir, capsys):
    np.savez("x.npz", images=np.eye(20))
    data = ["--data.name", "array", "--data.path", "x.npz", "--data.key", "image"]
    message = "expected data.key to name an array in .*; got 'image', the file contains images"
    assert_error(capsys, [*FIT, *data], message, workdir)


@pytest.fixture
def trap(workdir):
    """A module on the path that must not be imported."""
    Path("trap.py").write_text("open('executed', 'w').close()\n\ndef f(epoch): return 1.0\n")
    sys.path.insert(0, str(workdir))
    yield "trap"
    sys.path.remove(str(workdir))
    assert "trap" not in sys.modules and not Path("executed").exists()


@pytest.mark.parametrize("path", ["os.path.join", "subprocess.Popen", "trap.Prior"])
def test_classes_outside_the_allowed_modules_are_not_imported(path, trap, workdir, capsys):
    message = (
        f"expected model.prior to be a class of pyro_vae, torch.nn, torch.optim or a "
        f"--plugin; got '{path}': to use your own module add --plugin .*"
    )
    assert_error(capsys, [*FIT, "--model.prior", path], message, workdir)


@pytest.mark.parametrize(
    "options",
    [
        ["--nope", "class_path='trap.X'"],
        ["--fit.epochs", "class_path='trap.X'"],
        ["--fit.epochs", "{class_path: trap.X}"],
        ["--fit.optimizer", "{class_path: Adam, betas: {class_path: trap.X}}"],
        ["--model.encoder.hidden", "[trap.X]"],
        ["--model.encoder.activation", "{class_path: Hardtanh, min_val: trap.X}"],
        ["--objective.beta", "trap.X"],
        ["--fit.schedule", "LambdaLR", "--fit.schedule.lr_lambda", "trap.f"],
        ["--fit.schedule", "LambdaLR", "--fit.schedule.lr_lambda", "pyro_vae.core.files.os.system"],
        ["--model.prior", "pyro_vae.core.files.os.system"],
    ],
)
def test_error_messages_import_nothing(options, trap, workdir, capsys):
    assert_error(capsys, [*FIT, *options], "(expected [^;]*; .*|unknown option .*)", workdir)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    "argv", [[*FIT, "--fit.device", "cuda"], ["evaluate", "run", "--device=cuda"]]
)
def test_cuda_is_not_available(argv, workdir, capsys):
    message = "expected a CUDA device; torch found none: use device cpu or auto"
    assert_error(capsys, argv, message, workdir)


def truncate(name):
    file = Path("run", name)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write(name, content):
    return lambda: Path("run", name).write_bytes(content)


def remove(name):
    return lambda: Path("run", name).unlink()


class Trap:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def pickled():
    torch.save({"format": Trap()}, "run/state.pt")


RESUME = ["fit", "--run", "run", "--resume", "--fit.epochs", "2"]
EVALUATE, COMPARE, REPORT = ["evaluate", "run"], ["compare", "run"], ["report", "run"]
INCOMPLETE = "the run in run is incomplete, .*: resume with `pyro-vae fit --run run --resume`"
NO_RUN = "expected run to be the folder of a run; it has no config.yaml"

BAD_RUNS = {
    "existing run": (
        lambda: None,
        ["fit", "--config", "tiny.yaml", "--run", "run"],
        "run already contains a run: continue it with --resume, replace it with --overwrite, or .*",
    ),
    "foreign files": (
        remove("config.yaml"),
        ["fit", "--config", "tiny.yaml", "--run", "run", "--overwrite"],
        "expected run to be a new folder or the folder of a run; it contains other files: .*",
    ),
    "a file": (
        lambda: None,
        ["fit", "--config", "tiny.yaml", "--run", "tiny.yaml"],
        "expected tiny.yaml to be a new folder or the folder of a run; .*",
    ),
    "resume and overwrite": (lambda: None, [*RESUME, "--overwrite"], "expected .*; got both"),
    "incomplete evaluated": (remove("weights.safetensors"), EVALUATE, INCOMPLETE),
    "incomplete compared": (remove("weights.safetensors"), COMPARE, INCOMPLETE),
    "incomplete reported": (remove("weights.safetensors"), REPORT, INCOMPLETE),
    "no run evaluated": (remove("config.yaml"), EVALUATE, NO_RUN),
    "no run compared": (remove("config.yaml"), COMPARE, NO_RUN),
    "no run resumed": (remove("config.yaml"), RESUME, NO_RUN),
    "not evaluated": (
        remove("bounds.nc"), COMPARE,
        "the run in run has no bounds yet: run `pyro-vae evaluate run`",
    ),
    "another configuration": (
        lambda: None,
        [*RESUME, "--model.latent_dim", "3", "--fit.batch_size", "7"],
        "run has another configuration \\(fit.batch_size, model.latent_dim differ\\): .*",
    ),
    "num_samples": (
        lambda: None,
        [*EVALUATE, "--num-samples", "0"],
        "expected num_samples to be a positive integer; got 0",
    ),
    "truncated state": (
        lambda: truncate("state.pt"), RESUME, "expected run/state.pt to be .*; it is truncated .*"
    ),
    "state with code": (
        pickled, RESUME, "expected run/state.pt to be .*; .*, which were not executed: .*"
    ),
    "another's state": (
        lambda: torch.save({"epoch": 3}, "run/state.pt"),
        RESUME,
        "expected run/state.pt to be .*; it has another format: .*",
    ),
    "truncated weights": (
        lambda: truncate("weights.safetensors"), EVALUATE, "run/weights.safetensors is damaged.*"
    ),
    "foreign weights": (
        write("weights.safetensors", b"foreign"), EVALUATE, "run/weights.safetensors is damage.*"
    ),
    "damaged result": (
        lambda: truncate("result.json"), EVALUATE, "expected run/result.json to be a JSON obj.*"
    ),
    "another result": (
        write("result.json", b"[]"), COMPARE, "expected run/result.json to be a JSON object; .*"
    ),
    "damaged bounds": (
        lambda: truncate("bounds.nc"), COMPARE,
        "run/bounds.nc is damaged or from another version: .*",
    ),
    "damaged metrics": (
        write("metrics.jsonl", b"{\n"), REPORT, "expected .* every line of run/metrics.*"
    ),
    "damaged config": (
        write("config.yaml", b"data: {name"), EVALUATE, "run/config.yaml is damaged .* fix it, .*"
    ),
    "half a config": (
        write("config.yaml", b"data:\n  name: digits\n"), EVALUATE,
        "run/config.yaml is damaged .*expected model.latent_dim and data.binarize to be .*"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RUNS)
def test_bad_run(case, workdir, capsys):
    damage, argv, message = BAD_RUNS[case]
    damage()
    assert_error(capsys, argv, message, workdir)
    assert not Path("executed").exists()


def test_weights_of_a_different_model(workdir, capsys):
    other = ["fit", "--config", "tiny.yaml", "--run", "other", "--model.latent_dim", "3"]
    assert app.main(other) == 0
    shutil.copy("other/weights.safetensors", "run/weights.safetensors")
    message = "run/weights.safetensors is damaged or belongs to another model than run/config.*"
    assert_error(capsys, EVALUATE, message, workdir)


def test_full_disk(workdir):
    """Run a process whose file size is limited by the kernel."""
    code = (
        "import resource, signal, sys\n"
        "from pyro_vae import cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    before = snapshot(workdir)
    done = subprocess.run(
        [sys.executable, "-c", streams.PRELUDE + code, *RESUME], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "pyro-vae: could not write run/state.pt, the previous file is kept: " in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(workdir) == before


def test_existing_run_is_refused_before_its_configuration_is_read(workdir, capsys):
    message = "run already contains a run: continue it with --resume, replace it with .*"
    assert_error(capsys, ["fit", "--run", "run"], message, workdir)


def test_fit_without_a_folder(workdir, capsys):
    argv = ["fit", "--config", "tiny.yaml"]
    message = "expected a run folder; got nothing: add --run FOLDER"
    assert_error(capsys, argv, message, workdir)


def test_version(capsys):
    assert app.main(["--version"]) == 0
    assert re.fullmatch(r"pyro-vae \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_unknown_command(workdir, capsys):
    message = "expected a command, fit, .*; got 'evlauate'; did you mean evaluate\\?"
    assert_error(capsys, ["evlauate"], message, workdir)


def test_short_names_and_nested_options(workdir):
    argv = ["--model.prior", "MixtureOfNormals", "--model.prior.components", "20"]
    argv += ["--model.encoder.activation", "Sigmoid", "--model.decoder.hidden", "[4,5]"]
    argv += ["--fit.optimizer", "Adagrad", "--fit.optimizer.lr", "0.02"]
    argv += ["--fit.schedule", "StepLR", "--fit.schedule.step_size", "5"]
    assert app.main([*FIT, *argv]) == 0
    settings = yaml.safe_load(Path("new/config.yaml").read_text())
    model, fit = settings["model"], settings["fit"]
    assert model["prior"] == {
        "class_path": "pyro_vae.priors.MixtureOfNormals", "init_args": {"components": 20}
    }  # fmt: skip
    assert model["encoder"]["init_args"]["hidden"] == [8]
    assert model["encoder"]["init_args"]["activation"]["class_path"] == "torch.nn.Sigmoid"
    assert model["decoder"]["init_args"]["hidden"] == [4, 5]
    assert fit["optimizer"]["class_path"] == "torch.optim.Adagrad"
    assert fit["optimizer"]["init_args"]["lr"] == 0.02
    assert fit["schedule"]["init_args"]["step_size"] == 5
    _, _, vae = Run("new").open()
    assert vae.prior.logits.shape == (20,)
    assert isinstance(vae.posterior.network.layers[1], torch.nn.Sigmoid)


PLUGIN = """\
import torch
from torch import nn
import pyro.distributions as dist
import settings_module
from pyro_vae.priors import Prior


class Horseshoe(Prior):
    def __init__(self, latent_dim: int, tau: float = settings_module.TAU) -> None:
        super().__init__(latent_dim)
        self.tau = nn.Parameter(torch.tensor(tau))

    def forward(self):
        return dist.StudentT(1.0, self.tau.new_zeros(self.latent_dim), self.tau.abs()).to_event(1)
"""


def forget_modules(folder):
    """Make a second command in this process as good as one in another process."""
    for module in ("my_priors", "settings_module"):
        sys.modules.pop(module, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(folder)]


def test_plugin_of_a_run_is_imported_only_if_named(workdir, monkeypatch, tmp_path_factory, capsys):
    project = workdir / "project"
    project.mkdir()
    (project / "my_priors.py").write_text(PLUGIN)
    (project / "settings_module.py").write_text("TAU = 0.5\n")
    plugin, shoe = str(project / "my_priors.py"), str(workdir / "shoe")
    argv = ["fit", "--config", "tiny.yaml", "--plugin", "project/my_priors.py"]
    assert app.main([*argv, "--model.prior", "my_priors.Horseshoe", "--run", shoe]) == 0
    settings = yaml.safe_load((workdir / "shoe" / "config.yaml").read_text())
    assert settings["plugin"] == [plugin]
    assert settings["model"]["prior"]["init_args"] == {"tau": 0.5}

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    opening = [
        ["evaluate", shoe, "--num-samples", "5"],
        ["sample", shoe],
        ["report", shoe],
        ["fit", "--run", shoe, "--resume", "--fit.epochs", "2"],
    ]
    message = (
        f"expected the plugin '{plugin}', which .*shoe/config.yaml uses, to be named in this call, "
        f"because its code is executed; got no such --plugin: if you trust the code, add "
        f"--plugin {plugin} .see SECURITY.md#not-trusted."
    )
    for args in opening:
        forget_modules(project)
        assert_error(capsys, args, message, workdir / "shoe")
        assert "my_priors" not in sys.modules
    for args in opening:
        forget_modules(project)
        assert app.main([*args, "--plugin", plugin]) == 0
        assert "my_priors" in sys.modules
    assert len(Run(shoe).read_metrics()) == 2

    # a moved file is named by its new path
    shutil.move(project / "my_priors.py", elsewhere / "my_priors.py")
    shutil.move(project / "settings_module.py", elsewhere / "settings_module.py")
    forget_modules(project)
    assert app.main(["report", shoe, "--plugin", plugin]) == 1
    assert app.main(["evaluate", shoe, "--num-samples", "5", "--plugin", "my_priors"]) == 0
    forget_modules(elsewhere)


def test_plugin_in_a_run_folder_is_never_imported(workdir, monkeypatch, capsys):
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("plugin: []", "plugin: evil"))
    Path("run/evil.py").write_text("open('executed', 'w')")
    for folder in (workdir, workdir / "run"):
        monkeypatch.chdir(folder)
        run = str(workdir / "run")
        commands = (["evaluate", run], ["report", run], ["encode", run, "--output", "../z.npz"])
        for args in (*commands, ["fit", "--run", run, "--resume"]):
            message = "expected the plugin 'evil', which .*config.yaml uses, to be named .*"
            assert_error(capsys, args, message, workdir / "run")
            message = "expected a plugin outside the run folder .*; got .*evil.py: if you trust .*"
            plugin = str(workdir / "run" / "evil.py") if folder == workdir else "evil"
            assert_error(capsys, [*args, "--plugin", plugin], message, workdir / "run")
    assert "evil" not in sys.modules and not list(workdir.rglob("executed"))


def test_control_characters_of_a_file_do_not_reach_the_terminal(workdir, capsys):
    Path("tiny.yaml").write_text(TINY + 'plugin: "\\e[2Jmine"\n')
    message = (
        r"expected the plugin '\\x1b\[2Jmine', .* '\\x1b\[2Jmine' \(see SECURITY.md#not-trusted\)"
    )
    assert_error(capsys, FIT, message, workdir)


def test_python_names_the_plugin_of_a_run(workdir):
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("plugin: []", "plugin: colorsys"))
    with pytest.raises(PluginError, match="expected the plugin 'colorsys'"):
        load("run")
    assert load("run", plugin="colorsys").program is not None


def test_relative_data_path_is_found_from_any_folder(workdir, monkeypatch, tmp_path):
    np.save("x.npy", np.eye(20))
    data = ["--data.name", "array", "--data.path", "x.npy", "--data.valid", "0"]
    assert app.main([*FIT, *data]) == 0
    elsewhere = workdir / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert app.main(["evaluate", "../new", "--num-samples", "5"]) == 0
    # changed data at the same path are detected
    np.save("../x.npy", np.eye(20)[::-1].copy() * 0)
    assert app.main(["evaluate", "../new", "--num-samples", "5"]) == 1


def test_python_m(workdir):
    done = subprocess.run(
        [sys.executable, "-m", "pyro_vae", "compare", "run"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "nats per datum" in done.stdout


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_usage_lists_all_commands(argv, capsys):
    assert app.main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in HELP)


QUERIES = {
    "sample": ("sample run", "sample", []),
    "reconstruct": (
        "reconstruct run --num-data 24", "reconstructions",
        ["24 examples; mean squared error .* ± 0"],
    ),
    "interpolate": (
        "interpolate run --num-data 3 --steps 4 --path straight", "interpolate",
        ["3 paths of 4 points, straight"],
    ),
    "traverse": (
        "traverse run --dims [1] --values [-1,0,1] --datum 2", "traverse",
        ["one row per latent dimension: 1\n"],
    ),
    "in-paint": (
        "infer run --num-data 2 --num-samples 40 --draws 2", "infer",
        ["2 examples, 32 of 64 pixels observed, 40 proposals per example",
         "log p̂\\(x_mis \\| x_obs\\): -",
         "independent pixels \\(mean imputation\\): -"],
    ),
    "super-resolve": (
        "infer run --num-data 1 --num-samples 20 --draws 2 --missing every:2 --method hmc", "infer",
        ["1 examples, 16 of 64 pixels observed", "HMC acceptance rate: 0.\\d\\d"],
    ),
    "denoise": (
        "infer run --num-data 2 --num-samples 40 --draws 2 --missing none --noise 0.1", "infer",
        ["64 of 64 pixels observed", "log p̂\\(x_obs\\): -"],
    ),
    "anomaly": (
        "anomaly run --against-class 3 --num-samples 5", "anomaly",
        ["ELBO: AUROC 0.\\d{4} ± 0.\\d{4}", "log p̂: AUROC"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", QUERIES)
def test_query_commands(case, workdir, capsys):
    argv, picture, patterns = QUERIES[case]
    name = {"sample": "samples"}.get(picture, picture)
    assert app.main(argv.split()) == 0
    out = capsys.readouterr().out
    assert all(re.search(pattern, out) for pattern in patterns), out
    file = workdir / "run" / "figures" / f"{name}.png"
    assert f"picture: {file}\n" in out
    assert file.read_bytes().startswith(b"\x89PNG")
    if "hmc" in argv:
        return
    # the same seed gives the same picture
    before = file.read_bytes()
    assert app.main(argv.split()) == 0 and file.read_bytes() == before


def test_encode(workdir, capsys):
    assert app.main(["encode", "run", "--output", "codes/z.npz", "--num-data", "7"]) == 0
    assert "z.mean: float32 (7, 2)\n" in capsys.readouterr().out
    with np.load("codes/z.npz", allow_pickle=False) as file:
        _, data, vae = Run("run").open()
        part = data.test.head(7)
        expected = vae.posterior(part.materialize(0)).mean
        np.testing.assert_allclose(file["z.mean"], expected.detach().numpy(), atol=1e-5)
        np.testing.assert_array_equal(file["labels"], part.labels.numpy())


BAD_QUERIES = {
    "no run": ("sample nowhere", "expected nowhere to be the folder of a run; it has no .*"),
    "word": (
        "infer run --missing lower",
        "expected missing to be none, .* or every:N; got 'lower'; did you mean lower-half\\?",
    ),
    "fraction": ("infer run --missing random:2", "expected a fraction in .* 'random:'; got '2'"),
    "step": ("infer run --missing every:1", "expected a whole number from 2 to 8 .*; got '1'"),
    "number": ("infer run --missing random", "expected missing to be .*; got 'random'.*"),
    "noise": ("infer run --noise 0.7", "expected a flip probability in .*; got 0.7"),
    "method": (
        "infer run --method gibbs", "expected method to be importance or hmc; got 'gibbs'"
    ),
    "draws": ("infer run --draws 0", "expected draws to be a positive integer; got 0"),
    "proposals": ("infer run --num-samples 5", "expected num_samples ≥ 2 × fills; got 5 .*"),
    "steps": ("interpolate run --steps 1", "expected steps ≥ 2, .*; got 1"),
    "path": (
        "interpolate run --path curved",
        "expected path to be spherical or straight; got 'curved'",
    ),
    "num_data": ("interpolate run --num-data 0", "expected num_data to be a positive integer; .*"),
    "dims": ("traverse run --dims [5]", "expected dims from 0 to 1 of 'z'; got \\[5\\]"),
    "datum": ("traverse run --datum 999", "expected datum from 0 to 179; got 999"),
    "neither": (
        "anomaly run",
        "expected --against DATASET or --against-class CLASS; got neither: add one, or --output .*",
    ),
    "both": ("anomaly run --against mnist --against-class 1", "expected either --against .*"),
    "class": (
        "anomaly run --against-class 12",
        "expected --against-class to be a class of the data, 0, .*9; got 12",
    ),
    "shape": (
        "anomaly run --against mnist5k",
        "expected data of shape \\(1, 8, 8\\); mnist5k has \\(1, 28, 28\\)",
    ),
    "data set": ("anomaly run --against mnits", "expected data set to be one of .*; got 'mnits'.*"),
    "output": ("encode run", "expected output; got nothing: see `pyro-vae encode --help`"),
    "seed": ("sample run --seed -1", "expected seed to be an integer ≥ 0; got -1"),
    "large seed": (
        "evaluate run --num-samples 9 --seed 10000000000000000000", "expected seed to be at most .*"
    ),
    "endless": (
        "evaluate run --num-samples 1000000000001",
        "expected num_samples to be at most 10¹²; got 1000000000001, which takes years",
    ),
    "raw weights": (
        "evaluate run --num-samples 1000000000 --keep-log-weights",
        "expected the raw log weights to fit into .* GiB, the free .*; they take 670.6 GiB: "
        "drop keep_log_weights, or use fewer samples",
    ),
    "threshold": ("latents run --threshold -1", "expected threshold ≥ 0 and finite; got -1.0"),
    "no threshold": ("latents run --threshold .nan", "expected threshold ≥ 0 and finite; got nan"),
    "no values": (
        "traverse run --values []", "expected at least one value, all finite; got \\[\\]"
    ),
    "values": ("traverse run --values [1,.nan]", "expected at least one value, all finite; got .*"),
    "no dims": ("traverse run --dims []", "expected dims from 0 to 1 of 'z'; got \\[\\]"),
    "file of the run": (
        "encode run --output run/state.pt",
        "expected --output outside the folder of the run, .*; got run/state.pt: choose another .*",
    ),
    "file of the run by another path": (
        "encode run --output codes/../run/new.npz", "expected --output outside the folder of the .*"
    ),
    "output folder": (
        "encode run --output run/..", "expected --output to be a file; got the folder run/..: .*"
    ),
    "output below a file": (
        "encode run --output tiny.yaml/z.npz",
        "expected --output in a folder that can be written; got .*tiny.yaml: Not a directory",
    ),
    "images in a table": (
        "infer run --output x.csv",
        "expected --output to be an .npz file for examples of shape \\(1, 8, 8\\); got x.csv, .*",
    ),
    "output that cannot be written": (
        "encode run --output /proc/new/z.npz",
        "expected --output in a folder that can be written; got /proc: .*",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_QUERIES)
def test_bad_query(case, workdir, capsys):
    argv, message = BAD_QUERIES[case]
    assert_error(capsys, argv.split(), message, workdir)


def test_model_that_fills_the_memory(workdir, capsys, monkeypatch):
    monkeypatch.setattr(validation.os, "sysconf", lambda name: 100)
    message = (
        "expected the parameters and their optimizer to fit into 0.0 GiB, the free memory of this "
        "machine; they take 0.0 GiB: use a smaller model"
    )
    assert_error(capsys, FIT, message, workdir)


def test_output_that_would_replace_the_data(workdir, capsys):
    np.save("x.npy", np.eye(20))
    argv = [*FIT, "--data.name", "array", "--data.path", "x.npy", "--data.valid", "0"]
    assert app.main(argv) == 0
    Path("link.npz").symlink_to("x.npy")
    message = "expected another --output than the data of the run; got link.npz"
    assert_error(capsys, ["encode", "new", "--output", "link.npz"], message, workdir)


def test_home_folder_in_paths(workdir, monkeypatch, capsys):
    """A shell does not expand ``~`` inside a word, such as ``--run=~/run``, or in YAML."""
    home = workdir / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.copy("tiny.yaml", home / "my.yaml")
    assert app.main(["fit", "--config=~/my.yaml", "--run=~/new", "--start_from=~/../run"]) == 0
    assert (home / "new" / "weights.safetensors").is_file()
    assert app.main(["encode", "~/new", "--output", "~/z.npz", "--num-data", "2"]) == 0
    assert (home / "z.npz").is_file() and not Path("~").exists()
    # the name of an unknown user is that of a file
    message = "expected ~nobody9/run to be the folder of a run; it has no config.yaml"
    assert_error(capsys, ["encode", "~nobody9/run", "--output", "z.npz"], message, workdir)


HELP = {
    "fit": ["--model.prior", "MixtureOfNormals, StandardNormal,", "Adam",
            "passes over the training data. (default: 50)", "--overwrite", "{dynamic,static,"],
    "evaluate": ["--num-samples", "default: 5000", "--ks", "--keep-log-weights"],
    "bdmc": ["--num-data", "default: 64", "--annealing.num_chains", "{guide,prior}", "--device"],
    "gaps": ["--train", "--family", "FullCovarianceNormal", "--num-steps", "default: 500"],
    "latents": ["--threshold", "default: 0.01", "--num-draws"],
    "rate-distortion": ["--betas", "0.01, 0.02", "--annealing.schedule", "default: adaptive"],
    "compare": ["runs"],
    "report": ["run"],
    "sample": ["run", "--seed"],
    "reconstruct": ["--num-data", "default: 48"],
    "interpolate": ["--steps", "default: 10", "{spherical,straight}"],
    "traverse": ["--dims", "--values", "--datum"],
    "infer": ["lower-half", "random:FRACTION", "every:N", "{importance,hmc}", "--noise",
              "--columns", "--output OUTPUT"],
    "anomaly": ["--against AGAINST", "--against-class"],
    "encode": ["--output OUTPUT", "required"],
}  # fmt: skip


@pytest.mark.parametrize("command", HELP)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        app.main([command, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    text = " ".join(out.split())
    assert all(expected in text for expected in HELP[command])
    # no types, no import paths, no private torch modules
    assert not re.search(r"Callable|<class|Config|torch\.ao|pyro_vae\.\w", text)
    assert len(out.splitlines()) < 195


def test_help_of_a_class(capsys):
    with pytest.raises(SystemExit):
        app.main(["fit", "--model.prior.help", "VampPrior"])
    assert "--model.prior.components" in capsys.readouterr().out
