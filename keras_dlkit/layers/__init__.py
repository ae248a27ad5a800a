"""Layers: parts that change a batch, and parts that live in a network."""

from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.layers.concatenate_time import ConcatenateTime
from keras_dlkit.layers.cut_mix import CutMix
from keras_dlkit.layers.cut_out import CutOut
from keras_dlkit.layers.manifold_mix_up import ManifoldMixUp
from keras_dlkit.layers.mean_and_scale import MeanAndScale
from keras_dlkit.layers.mix_point import MixPoint
from keras_dlkit.layers.mix_up import MixUp
from keras_dlkit.layers.random_choice import RandomChoice
from keras_dlkit.layers.sde_block import SDEBlock
from keras_dlkit.layers.supermask import Supermask
