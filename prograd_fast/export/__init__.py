"""Trained classifiers in the forms of other libraries: open_clip's weight matrix, NumPy arrays, ONNX; and in words."""

from prograd_fast.export.arrays import write_numpy, write_open_clip
from prograd_fast.export.classifier import Classifier, classifier_of
from prograd_fast.export.exported import Exported
from prograd_fast.export.onnx import write_onnx
from prograd_fast.export.words import Neighbours, Word, nearest_words

__all__ = [
    "Classifier",
    "Exported",
    "Neighbours",
    "Word",
    "classifier_of",
    "nearest_words",
    "write_numpy",
    "write_onnx",
    "write_open_clip",
]
