"""Plain files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...core import files
from .base import Tracker

__all__ = ["CSV"]


class CSV(Tracker):
    """``metrics.csv``, ``config.yaml``, ``summary.json`` and pictures as PNG files.

    It needs no other package. Files are replaced as a whole, so that a reader never sees half of
    one.

    References:
        https://www.rfc-editor.org/rfc/rfc4180
    """

    def open(self, name: str, config: Mapping[str, Any], *, resumed: bool) -> None:
        self._rows: list[dict[str, Any]] = []
        if resumed and self._metrics.is_file():
            with self._metrics.open(encoding="utf-8", newline="") as file:
                self._rows = [{k: v for k, v in r.items() if v != ""} for r in csv.DictReader(file)]
        if resumed:
            return
        import yaml  # slow to import

        text = yaml.safe_dump({"name": name, **config}, sort_keys=False, allow_unicode=True)
        files.atomic_write_text(self._file("config.yaml"), text)

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        if not self._rows:  # the summary of an earlier training
            self._summary.unlink(missing_ok=True)
        self._rows.append({"epoch": epoch, **metrics})
        # a column may appear late: validation, compilation
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        files.atomic_write_text(self._metrics, text.getvalue())

    def log_picture(self, name: str, pixels: np.ndarray, epoch: int) -> None:
        import matplotlib.image  # slow to import, too

        content = io.BytesIO()
        matplotlib.image.imsave(content, pixels, format="png")
        files.atomic_write_bytes(self._file(f"{name}-{epoch}.png"), content.getvalue())

    def log_summary(self, values: Mapping[str, Any]) -> None:
        file = self._summary
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        files.atomic_write_text(file, json.dumps({**before, **values}, indent=2) + "\n")

    def finish(self, failed: bool = False) -> None:
        pass

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name

    @property
    def _metrics(self) -> Path:
        return self._file("metrics.csv")

    @property
    def _summary(self) -> Path:
        return self._file("summary.json")
