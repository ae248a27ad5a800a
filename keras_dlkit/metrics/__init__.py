"""Metrics of detection: what is known, and what is not."""

from keras_dlkit.metrics.aupr import AUPR
from keras_dlkit.metrics.auroc import AUROC
from keras_dlkit.metrics.detection_accuracy import DetectionAccuracy
from keras_dlkit.metrics.detection_report import detection_report
from keras_dlkit.metrics.false_positive_rate_at_recall import (
    FalsePositiveRateAtRecall,
)
