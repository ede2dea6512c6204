"""Export of a trained VAE as functions that need only torch."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.overrides import TorchFunctionMode

from ..core import files
from ..core.evaluation_mode import eval_mode
from ..core.validation import as_path
from ..models import VAE
from ..queries.decoding import get_mean

__all__ = ["ExportError", "export"]

#: Examples of the traced call, and of the call that is compared with the program.
_TRACED, _CHECKED = 3, 5
#: Largest difference between an exported function and the program, relative to 1 + |value|.
_TOLERANCE = 1e-5


class ExportError(ValueError):
    """A program cannot be exported; the message is one sentence."""


class _GivenNoise(TorchFunctionMode):
    """Replace standard normal draws by the columns of ``noise``, ``(N, width)``, in order.

    Without ``noise`` the draws are counted.
    """

    def __init__(self, noise: Tensor | None = None) -> None:
        super().__init__()
        self.noise, self.width = noise, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.Tensor.normal_:
            return func(*args, **(kwargs or {}))
        (empty,) = args
        size = math.prod(empty.shape[1:])
        start, self.width = self.width, self.width + size
        if self.noise is None:
            return func(empty)
        return self.noise[:, start : self.width].reshape(empty.shape)


class _Encoder(nn.Module):
    """x and noise ↦ z and log q(z|x)."""

    def __init__(self, program: VAE) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with _GivenNoise(noise):
            q = self.program.posterior(x)
            z = q.rsample()
        return z, q.log_prob(z)


class _Decoder(nn.Module):
    """z ↦ the mean of p(x|z)."""

    def __init__(self, program: VAE) -> None:
        super().__init__()
        self.program = program

    def forward(self, z: Tensor) -> Tensor:
        fn = self.program.likelihood(z)
        mean = get_mean(cast("Any", {"fn": fn, "name": "x"}))
        return mean.reshape(-1, *self.program.event_shape)


class _LogWeight(nn.Module):
    """x and noise ↦ log p(x, z) − log q(z|x)."""

    def __init__(self, program: VAE) -> None:
        super().__init__()
        self.program = program
        self.encoder = _Encoder(program)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        z, log_q = self.encoder(x, noise)
        log_p = self.program.prior().log_prob(z) + self.program.likelihood(z).log_prob(x)
        return log_p - log_q


def export(program: Any, folder: Path | str, *, onnx: bool = False) -> dict[str, Any]:
    """Write encoder, decoder and importance weight as functions that need only torch.

    Each function is a ``torch.export`` program, which ``torch.export.load(FILE).module()`` opens
    in a process without this package and without Pyro. The number of examples N is free.

    * ``encoder.pt2``: x ``(N, *event_shape)`` and noise ``(N, noise)`` ↦ z ``(N, latent_dim)`` and
      log q(z|x) ``(N,)``. With a normal posterior, noise 0 gives its mean;
    * ``decoder.pt2``: z ↦ the mean of p(x|z), ``(N, *event_shape)``;
    * ``log_weight.pt2``: x and noise ↦ log p(x, z) − log q(z|x), ``(N,)``, in nats. Its mean over
      standard normal noise is the ELBO, and log mean exp over K draws is L_K.

    ``signature.json`` and ``README.md`` describe them. Each function is compared with the program
    on other random inputs before anything is written.

    Arguments:
        program: a trained :class:`~pyro_vae.VAE`.
        folder: folder to write; it must not exist or be empty.
        onnx: also write each function as ``NAME.onnx``.

    Returns:
        The content of ``signature.json``.

    Raises:
        ExportError: if the program is not a ``VAE``, if its samples are not functions of normal
            noise, if it has no mean of p(x|z), or if torch cannot export one of its operations.
        FileExistsError: if the folder is not empty.
        ModuleNotFoundError: if ``onnx`` is set and its packages are not installed.
    """
    target = as_path(folder)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(
            f"expected a new folder; got {target}, which has files: choose another"
        )
    methods = (getattr(type(program), n, None) for n in ("model", "guide"))
    if [*methods] != [VAE.model, VAE.guide]:
        raise ExportError(
            f"expected a VAE, or a subclass with its model and guide; got {type(program).__name__}"
        )
    with _frozen(program), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the internals of torch.export
        width = _count_noise(program)
        inputs = {
            "encoder": (_Encoder(program), ("x", "noise")),
            "decoder": (_Decoder(program), ("z",)),
            "log_weight": (_LogWeight(program), ("x", "noise")),
        }
        with tempfile.TemporaryDirectory(dir=_existing_parent(target)) as temporary:
            written = Path(temporary) / "export"
            written.mkdir()
            for name, (module, names) in inputs.items():
                _export_function(module, name, names, program, width, written, onnx)
            signature = _describe(program, width, onnx)
            files.atomic_write_text(written / "signature.json", json.dumps(signature, indent=2))
            files.atomic_write_text(written / "README.md", _README.format(**signature))
            if target.exists():
                target.rmdir()
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(written, target)
    return signature


def _export_function(
    module: nn.Module,
    name: str,
    names: tuple[str, ...],
    program: VAE,
    width: int,
    folder: Path,
    onnx: bool,
) -> None:
    """Export one function, compare it with the program, and write it."""
    batch = Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in names)
    try:
        exported = torch.export.export(
            module, _make_inputs(names, program, width, _TRACED), dynamic_shapes=shapes
        )
        # removes switches of the gradient mode, which torch cannot read back from a file
        exported = exported.run_decompositions({})
        file = folder / f"{name}.pt2"
        torch.export.save(exported, file)
        loaded = torch.export.load(file).module()
    except Exception as error:  # of various types
        raise ExportError(
            f"expected a program that torch.export can trace; got {_first_line(error)} in the "
            f"{name} of {_describe_parts(program)}"
        ) from error
    inputs = _make_inputs(names, program, width, _CHECKED)
    _check_equal(loaded, module, inputs, file.name)
    if onnx:
        _write_onnx(exported, module, names, inputs, folder / f"{name}.onnx")


def _write_onnx(
    exported: Any,
    module: nn.Module,
    names: tuple[str, ...],
    inputs: tuple[Tensor, ...],
    file: Path,
) -> None:
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX files need {error.name}: pip install 'pyro-vae[onnx]'", name=error.name
        ) from error
    try:
        program = torch.onnx.export(exported, input_names=names, dynamo=True, verbose=False)
        assert program is not None
        program.save(file)
    except Exception as error:
        raise ExportError(
            f"expected operations that ONNX has; got {_first_line(error)} for {file.name}: leave "
            f"out onnx"
        ) from error
    session = onnxruntime.InferenceSession(file)
    given = {i.name: t.numpy() for i, t in zip(session.get_inputs(), inputs, strict=True)}

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.as_tensor(value) for value in session.run(None, given))

    _check_equal(run, module, inputs, file.name)


def _check_equal(
    function: Callable[..., Any], module: nn.Module, inputs: tuple[Tensor, ...], name: str
) -> None:
    """Raise if a function differs from the module that it was exported from."""
    pairs = zip(_as_tuple(function(*inputs)), _as_tuple(module(*inputs)), strict=True)
    errors = [float(((a - b).abs() / (1 + b.abs())).max()) for a, b in pairs]
    if not max(errors) <= _TOLERANCE:
        raise ExportError(
            f"expected {name} to equal the program within {_TOLERANCE}; got a relative difference "
            f"of {max(errors):.1e}"
        )


def _make_inputs(names: tuple[str, ...], program: VAE, width: int, size: int) -> tuple[Tensor, ...]:
    """Return random inputs of the shapes of a function; they do not depend on global generators."""
    generator = torch.Generator().manual_seed(size)
    dtype = next(program.parameters()).dtype
    shapes = {"noise": (width,), "z": (program.latent_dim,)}
    draws = {
        name: torch.randn(size, *shape, generator=generator, dtype=dtype)
        for name, shape in shapes.items()
    }
    # a sample of the model is in the support of its likelihood
    with torch.random.fork_rng():
        torch.manual_seed(size)
        draws["x"] = program.likelihood(draws["z"]).sample().reshape(size, *program.event_shape)
    return tuple(draws[name] for name in names)


@contextmanager
def _frozen(program: VAE) -> Iterator[None]:
    """Run a program without checks of values, which cannot be exported, and without gradients."""
    device = next(program.parameters()).device
    flags = [p.requires_grad for p in program.parameters()]
    programs, unchecked = (program.model, program.guide), pyro.validation_enabled(False)
    with eval_mode(*programs), unchecked, torch.no_grad():
        try:
            program.requires_grad_(False).to("cpu")
            yield
        finally:
            program.to(device)
            for parameter, flag in zip(program.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)


def _count_noise(program: VAE) -> int:
    """Return the number of standard normal draws of an example's z."""
    (x,) = _make_inputs(("x",), program, 0, _TRACED)
    with torch.random.fork_rng():
        q = program.posterior(x)
        if not q.has_rsample:
            raise ExportError(f"expected a reparameterised q(z|x); got {_describe_parts(program)}")
        with _GivenNoise() as count:
            q.rsample()
        with _GivenNoise(torch.zeros(_TRACED, count.width, dtype=x.dtype)):
            first, second = q.rsample(), None
        with _GivenNoise(torch.zeros(_TRACED, count.width, dtype=x.dtype)):
            second = q.rsample()
    if not torch.equal(first, second):
        raise ExportError(
            f"expected samples of q(z|x) to be functions of normal noise; got "
            f"{type(program.posterior).__name__}, which draws other random numbers"
        )
    return count.width


def _describe(program: VAE, width: int, onnx: bool) -> dict[str, Any]:
    return {
        "parts": _describe_parts(program),
        "event_shape": list(program.event_shape),
        "latent_dim": program.latent_dim,
        "noise": width,
        "dtype": str(next(program.parameters()).dtype).removeprefix("torch."),
        "measure": program.likelihood.measure,
        "functions": {
            "encoder": {"inputs": ["x", "noise"], "outputs": ["z", "log q(z|x)"]},
            "decoder": {"inputs": ["z"], "outputs": ["mean of p(x|z)"]},
            "log_weight": {"inputs": ["x", "noise"], "outputs": ["log p(x, z) - log q(z|x)"]},
        },
        "formats": ["pt2", "onnx"] if onnx else ["pt2"],
        "torch": torch.__version__,
    }


def _describe_parts(program: VAE) -> str:
    parts = (program.prior, program.likelihood, program.posterior)
    names = ", ".join(type(part).__name__ for part in parts)
    return f"{type(program).__name__}({names})"


def _as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _first_line(error: BaseException) -> str:
    """Return the type and the first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _existing_parent(path: Path) -> Path:
    """Return the closest folder above a path that exists, so that a rename is atomic."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


_README = """\
# Exported {parts}

Functions of torch.export. N is the number of examples, numbers are {dtype}, log-densities are in
nats, `(N,)`, noise is standard normal.

| file | inputs | outputs |
|---|---|---|
| encoder.pt2 | x `(N, *{event_shape})`, noise `(N, {noise})` | z `(N, {latent_dim})`, log q(z) |
| decoder.pt2 | z `(N, {latent_dim})` | mean of p(x\\|z) `(N, *{event_shape})` |
| log_weight.pt2 | x, noise | log p(x, z) − log q(z\\|x) |

p(x|z) is a {measure}.

```python
import torch

log_weight = torch.export.load("log_weight.pt2").module()
log_w = torch.stack([log_weight(x, torch.randn(len(x), {noise})) for _ in range(100)])
elbo = log_w.mean(0)
iwae = log_w.logsumexp(0) - torch.tensor(100.0).log()
```
"""
