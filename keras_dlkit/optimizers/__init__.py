"""Optimizers that wrap any Keras optimizer."""

from keras_dlkit.optimizers.friendly_sam import FriendlySAM
from keras_dlkit.optimizers.gsam import GSAM
from keras_dlkit.optimizers.learning_rate_multiplier import (
    LearningRateMultiplier,
)
from keras_dlkit.optimizers.look_sam import LookSAM
from keras_dlkit.optimizers.masked import Masked
from keras_dlkit.optimizers.momentum_sam import MomentumSAM
from keras_dlkit.optimizers.sam import SAM
from keras_dlkit.optimizers.two_gradient import TwoGradient
from keras_dlkit.optimizers.wrapper_optimizer import WrapperOptimizer
