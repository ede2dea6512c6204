"""Files that do not belong together, were changed or are of another version; locks of runs."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from run_folders import TINY, assert_error, full_disk, snapshot

import pyro_vae as pv
from pyro_vae.cli import app
from pyro_vae.evaluation import EVALUATIONS
from pyro_vae.report import write_report
from pyro_vae.runs.provenance import weights_checksum
from pyro_vae.runs.run import Run, RunError

EVALUATE = ["evaluate", "run", "--num-samples", "30", "--num-data", "5"]
LATENTS = ["latents", "run", "--num-data", "20", "--num-samples", "4", "--num-draws", "50"]
RESUME = ["fit", "--run", "run", "--resume"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Two evaluated runs with different weights."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    for name, seed in (("run", "0"), ("other", "1")):
        fit = ["fit", "--config", str(folder / "tiny.yaml"), "--run", str(folder / name)]
        assert app.main([*fit, "--fit.seed", seed]) == 0
        Run(folder / name).evaluate(num_samples=30, num_data=5)
    return folder


@pytest.fixture
def workdir(finished, tmp_path, monkeypatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_checksums_of_the_weights_are_stored(workdir):
    run = Run("run")
    result, bounds = run.read_result(), run.read_bounds()
    checksum = weights_checksum(run.weights)
    assert result["fit"]["weights"] == result["bounds"]["weights"] == checksum
    assert bounds.provenance == result["bounds"]
    assert "checksum" in json.loads(run.result.read_text(encoding="utf-8"))


def test_results_of_other_weights_are_refused(workdir, capsys):
    shutil.copy("other/bounds.nc", "run/bounds.nc")
    message = (
        r"run/bounds.nc is a result of other weights than run/weights.safetensors \(SHA-256 .*…, "
        r"now .*…\): replace it with `pyro-vae evaluate run`"
    )
    for command in (["compare", "run"], ["compare", "other", "run"], ["report", "run"]):
        assert_error(capsys, command, message, workdir)


def test_bounds_without_an_entry_are_refused(workdir, capsys):
    """Killed between the two files, in a version that stored the entry in one of them only."""
    run = Run("run")
    run.read_bounds().to_netcdf(run.bounds)
    entries = {k: v for k, v in run.read_result().items() if k != "bounds"}
    del entries["fit"]["weights"]
    run.result.write_text(json.dumps(entries), encoding="utf-8")
    message = "run/bounds.nc has no entry in run/result.json: replace it with `pyro-vae evaluate .*"
    for command in (["compare", "run"], ["report", "run"]):
        assert_error(capsys, command, message, workdir)


def test_weights_that_change_during_an_evaluation(workdir, capsys):
    """Without locks, e.g. by a process on another machine."""
    before = snapshot(Path("run"))
    printed = []

    def replace_run(result, entry):
        printed.append(str(result))
        shutil.copytree("other", "run", dirs_exist_ok=True)

    message = "the weights of run have changed during the computation: the result is not written"
    with pytest.raises(RunError, match=message):
        Run("run").compute("bounds", num_samples=20, num_data=5, on_result=replace_run)
    assert len(printed) == 1 and "5 examples × 20 samples" in printed[0]
    assert snapshot(Path("run")) == snapshot(Path("other")) != before


#: Each file with the commands that read it.
CHANGED = {
    "weights.safetensors": [EVALUATE, ["report", "run"], ["compare", "other", "run"]],
    "state.pt": [[*RESUME, "--fit.epochs", "2"]],
    "bounds.nc": [["compare", "run"]],
    "result.json": [["compare", "run"], ["compare", "other", "run"]],
    "metrics.jsonl": [["report", "run"]],
}


@pytest.mark.parametrize("name", CHANGED)
def test_flipped_bits_are_noticed(name, workdir, capsys):
    file, generator = Path("run", name), random.Random(name)
    good = file.read_bytes()
    capsys.readouterr()
    for position in generator.sample(range(len(good)), 3):
        bad = bytearray(good)
        bad[position] ^= 1 << generator.randrange(8)
        file.write_bytes(bad)
        for command in CHANGED[name]:
            before = snapshot(workdir)
            status = app.main(command)
            out, err = capsys.readouterr()
            if status == 0:  # in the layout of the text, or in the words of the trailer
                assert name in ("result.json", "bounds.nc", "state.pt")
                continue
            assert snapshot(workdir) == before
            assert str(file) in err and out == ""
            assert err.count("\n") == 1 and err.startswith("pyro-vae: ")
    file.write_bytes(good)
    assert app.main(["compare", "run"]) == 0


def test_every_flipped_bit_of_the_numbers_is_noticed(workdir):
    """Of all files that are read without the command line, which is slow."""
    run, generator = Run("run"), random.Random(0)
    readers = {run.bounds: run.read_bounds, run.result: run.read_result}
    readers[run.metrics] = run.read_metrics
    for file, read in readers.items():
        good, expected, refused = file.read_bytes(), str(read()), 0
        for position in generator.sample(range(len(good)), min(len(good), 300)):
            bad = bytearray(good)
            bad[position] ^= 1 << generator.randrange(8)
            file.write_bytes(bad)
            try:
                assert str(read()) == expected
            except RunError:
                refused += 1
        file.write_bytes(good)
        assert refused > 0.6 * min(len(good), 300)


def test_a_checksum_of_another_name_is_missed(workdir):
    run = Run("run")
    text = run.result.read_text(encoding="utf-8")
    assert text.count('"checksum": ') == 2  # of the data, and of the file
    run.result.write_text('"checkSum": '.join(text.rsplit('"checksum": ', 1)), encoding="utf-8")
    with pytest.raises(RunError, match="damaged or was edited"):
        run.read_result()


@pytest.mark.parametrize("name", ["weights.safetensors", "metrics.jsonl", "result.json"])
def test_resuming_writes_damaged_files_again(name, workdir, capsys):
    file, before = Path("run", name), snapshot(Path("run"))
    if name == "result.json":
        file.unlink()  # as the message says
    else:
        file.write_bytes(file.read_bytes()[:-9] + bytes(9))
    assert app.main(RESUME) == 0
    assert "already finished" not in capsys.readouterr().out
    after = snapshot(Path("run"))
    assert after.keys() == before.keys()
    for unchanged in before.keys() - {"result.json"}:
        assert after[unchanged] == before[unchanged]
    # the bounds are of the same weights
    assert app.main(["compare", "run"]) == 0 and app.main(["report", "run"]) == 0


def test_changed_configuration_is_noticed(workdir, capsys):
    text = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(text.replace("- 8", "- 9").replace("valid: 0.1", "valid: 5"))
    message = (
        r"run/config.yaml has changed since the run was trained \(data.valid, "
        r"model.decoder.init_args.hidden, model.encoder.init_args.hidden differ\): restore it, .*"
    )
    for command in (EVALUATE, RESUME):
        assert_error(capsys, command, message, workdir)
    # settings of the machine may differ
    Path("run/config.yaml").write_text(text.replace("device: cpu", "device: auto"))
    assert app.main(EVALUATE) == 0


def forget_checksums(run: Run, **changes: str) -> None:
    """Make ``result.json`` one of an older version."""
    result = json.loads(run.result.read_text(encoding="utf-8"))
    del result["checksum"]
    for key in ("weights", "metrics", "state"):
        del result["fit"][key]
    result.get("bounds", {}).pop("weights", None)
    result["versions"] |= changes
    run.result.write_text(json.dumps(result), encoding="utf-8")


def test_weights_of_another_type_are_refused(workdir, capsys):
    run = Run("run")
    forget_checksums(run)
    tensors = safetensors.torch.load_file(run.weights)
    safetensors.torch.save_file({n: t.double() for n, t in tensors.items()}, run.weights)
    message = (
        "run/weights.safetensors is damaged or belongs to another model than run/config.yaml: "
        r"expected .* to be torch\.float32; got torch\.float64"
    )
    assert_error(capsys, EVALUATE, message, workdir)


def test_run_of_an_older_version_is_read(workdir, caplog):
    run = Run("run")
    expected = str(run.read_bounds())
    run.read_bounds().to_netcdf(run.bounds)
    content = torch.load(run.state, weights_only=True)
    torch.save(content, run.state)
    forget_checksums(run, **{"pyro-vae": "0.2.0"})
    assert str(run.read_bounds()) == expected and run.read_bounds().provenance["num_data"] == 5
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        write_report(run)
    (warning,) = {r.getMessage() for r in caplog.records}
    assert re.fullmatch(r"numbers may differ .* run; .* trained by pyro-vae 0.2.0, .*", warning)
    assert app.main([*RESUME, "--fit.epochs", "2"]) == 0
    assert run.read_result()["versions"]["pyro-vae"] != "0.2.0"
    # a setting that this version does not know
    forget_checksums(run, **{"pyro-vae": "9.9.9"})
    with run.config.open("a") as file:
        file.write("new_setting: 3\n")
    message = r"damaged or invalid \(.*new-setting; the run was trained by pyro-vae 9.9.9, this is"
    with pytest.raises(RunError, match=message):
        run.open()


def test_state_of_another_run_is_refused(workdir, capsys):
    shutil.copy("other/state.pt", "run/state.pt")
    message = "expected run/state.pt to be the state in which the run was finished; it is that .*"
    assert_error(capsys, [*RESUME, "--fit.epochs", "2"], message, workdir)


def test_state_of_another_version(workdir, capsys):
    state = {**torch.load("run/state.pt", weights_only=True), "format": "pyro_vae fit state 9"}
    torch.save(state, "run/state.pt")
    message = r"expected run/state.pt .*; it is of another version \(pyro_vae fit state 9\): .*"
    assert_error(capsys, [*RESUME, "--fit.epochs", "2"], message, workdir)


USERS = {
    "fit": (None, [EVALUATE, LATENTS, ["report", "run"], [*RESUME, "--fit.epochs", "2"]]),
    "evaluation": ("bounds", [EVALUATE, [*RESUME, "--fit.epochs", "2"]]),
    "report": ("report", [["report", "run"], [*RESUME, "--fit.epochs", "2"]]),
}


@pytest.mark.parametrize("user", USERS)
def test_commands_exclude_each_other(user, workdir, capsys):
    name, excluded = USERS[user]
    overwrite = ["fit", "--config", "tiny.yaml", "--run", "run", "--overwrite"]
    message = rf"run is in use by `.*` \(process {os.getpid()} on .*\): wait until it has ended, .*"
    with Run("run").exclusive(*([] if name is None else [name])):
        for command in (*excluded, overwrite):
            assert_error(capsys, command, message, workdir)
        # readers are never excluded, nor are evaluations of another kind
        assert app.main(["compare", "run"]) == 0 and app.main(["sample", "run"]) == 0
        if name is not None:
            assert app.main(LATENTS) == 0
    for command in excluded:
        assert app.main(command) == 0


def test_simultaneous_results_are_all_kept(workdir):
    run = Run("run")
    before = run.read_result()
    added = {f"evaluation {i}": {"value": i} for i in range(12)}
    threads = [
        threading.Thread(target=run._update_result, args=({k: v},)) for k, v in added.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.read_result() == before | added


def test_folder_that_cannot_be_written_to(workdir, capsys, monkeypatch):
    def fail(path, *args, **kwargs):
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    opened = os.open
    monkeypatch.setattr(os, "open", fail)
    message = "expected a folder that can be written to; got run: Permission denied"
    for command in (EVALUATE, ["report", "run"], [*RESUME, "--fit.epochs", "2"]):
        assert_error(capsys, command, message, workdir)


@pytest.mark.parametrize("command", [EVALUATE, LATENTS, [*EVALUATE, "--keep-log-weights"]])
def test_full_disk_loses_no_result(command, workdir, capsys):
    name = {"evaluate": "bounds"}.get(command[0], command[0])
    before = snapshot(Path("run"))
    capsys.readouterr()
    with full_disk(2000):
        assert app.main(command) == 1
    out, err = capsys.readouterr()
    message = f"pyro-vae: could not write run/{name}.nc, the previous file is kept: File too large"
    assert err.endswith(f"{message}\n")
    assert snapshot(Path("run")) == before
    # the table is printed all the same
    assert app.main(command) == 0
    assert out == capsys.readouterr().out.partition("per-example results")[0] != ""


def test_netcdf_files_of_all_evaluations_are_readable_by_others(workdir):
    import arviz
    import xarray

    assert app.main(LATENTS) == 0
    for name in ("bounds", "latents"):
        file = Run("run").evaluation_file(name)
        with xarray.open_datatree(file, engine="h5netcdf") as tree:
            provenance = json.loads(tree.attrs["provenance"])
        assert provenance == Run("run").read_result()[name]
        assert arviz.from_netcdf(str(file)).attrs["provenance"]
        result = EVALUATIONS[name].result.from_netcdf(file)
        assert len(result) == provenance["num_data"]


def test_bounds_without_a_run_have_no_provenance(tmp_path):
    vae = pv.VAE((3,), latent_dim=1)
    bounds = pv.evaluate(vae, torch.bernoulli(torch.full((4, 3), 0.5)), num_samples=5)
    assert bounds.provenance == {}
    bounds.to_netcdf(tmp_path / "bounds.nc")
    assert pv.Bounds.from_netcdf(tmp_path / "bounds.nc").provenance == {}
    np.testing.assert_array_equal(
        pv.Bounds.from_netcdf(tmp_path / "bounds.nc").per_datum["elbo"], bounds.per_datum["elbo"]
    )
