"""What a benchmark's result file says of the machine, and how it is written."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """Processor, threads and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro-ppl": metadata.version("pyro-ppl"),
    }


def write(name: str, command: str, result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Writes ``NAME.json`` in a folder, ``results/`` if none is given, and prints it."""
    content = {"command": command, "machine": describe(), **result}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(text, encoding="utf-8")
    print(text)
