"""Trackers: record a training in plain files, TensorBoard, W&B, MLflow or Trackio."""

from .base import Tracker
from .csv import CSV
from .services import MLflow, TensorBoard, Trackio, WandB

__all__ = ["CSV", "MLflow", "TensorBoard", "Tracker", "Trackio", "WandB"]
