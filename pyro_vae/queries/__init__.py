"""Queries of a trained model: sampling, imputation, anomaly detection and encoding."""

from .anomaly import AUROC, anomaly_scores, auroc, score_examples
from .encoding import encode
from .generate import Generated, GeneratedSite, interpolate, reconstruct, sample, traverse
from .imputation import Imputation, MissingScore, impute, score_missing
from .pixels import AdditiveNormal, Flip, Noise, mask, mask_columns, score_pixelwise

__all__ = [
    "AUROC",
    "AdditiveNormal",
    "Flip",
    "Generated",
    "GeneratedSite",
    "Imputation",
    "MissingScore",
    "Noise",
    "anomaly_scores",
    "auroc",
    "encode",
    "impute",
    "interpolate",
    "mask",
    "mask_columns",
    "reconstruct",
    "sample",
    "score_examples",
    "score_missing",
    "score_pixelwise",
    "traverse",
]
