"""Layers: parts that change a batch, and parts that live in a network."""

from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.layers.mix_up import MixUp
