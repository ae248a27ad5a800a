"""Layers: parts that change a batch, and parts that live in a network."""

from keras_dlkit.layers.batch_normalization_batch_ensemble import (
    BatchNormalizationBatchEnsemble,
)
from keras_dlkit.layers.batch_part import BatchPart
from keras_dlkit.layers.concatenate_time import ConcatenateTime
from keras_dlkit.layers.conv1d_batch_ensemble import Conv1DBatchEnsemble
from keras_dlkit.layers.conv2d_batch_ensemble import Conv2DBatchEnsemble
from keras_dlkit.layers.conv3d_batch_ensemble import Conv3DBatchEnsemble
from keras_dlkit.layers.cut_mix import CutMix
from keras_dlkit.layers.cut_out import CutOut
from keras_dlkit.layers.dense_batch_ensemble import DenseBatchEnsemble
from keras_dlkit.layers.depthwise_conv1d_batch_ensemble import (
    DepthwiseConv1DBatchEnsemble,
)
from keras_dlkit.layers.depthwise_conv2d_batch_ensemble import (
    DepthwiseConv2DBatchEnsemble,
)
from keras_dlkit.layers.einsum_dense_batch_ensemble import (
    EinsumDenseBatchEnsemble,
)
from keras_dlkit.layers.embedding_batch_ensemble import EmbeddingBatchEnsemble
from keras_dlkit.layers.group_normalization_batch_ensemble import (
    GroupNormalizationBatchEnsemble,
)
from keras_dlkit.layers.layer_normalization_batch_ensemble import (
    LayerNormalizationBatchEnsemble,
)
from keras_dlkit.layers.manifold_mix_up import ManifoldMixUp
from keras_dlkit.layers.mean_and_scale import MeanAndScale
from keras_dlkit.layers.mix_point import MixPoint
from keras_dlkit.layers.mix_up import MixUp
from keras_dlkit.layers.random_choice import RandomChoice
from keras_dlkit.layers.sde_block import SDEBlock
from keras_dlkit.layers.separable_conv1d_batch_ensemble import (
    SeparableConv1DBatchEnsemble,
)
from keras_dlkit.layers.separable_conv2d_batch_ensemble import (
    SeparableConv2DBatchEnsemble,
)
from keras_dlkit.layers.supermask import Supermask
