"""How the losses of several outputs become one."""

from keras_dlkit.losses.dynamic_weight_average import DynamicWeightAverage
from keras_dlkit.losses.equal_weighting import EqualWeighting
from keras_dlkit.losses.famo import FAMO
from keras_dlkit.losses.gaussian_negative_log_likelihood import (
    GaussianNegativeLogLikelihood,
)
from keras_dlkit.losses.geometric_loss_strategy import GeometricLossStrategy
from keras_dlkit.losses.pc_grad import PCGrad
from keras_dlkit.losses.random_loss_weighting import RandomLossWeighting
from keras_dlkit.losses.soft_optimal_uncertainty_weighting import (
    SoftOptimalUncertaintyWeighting,
)
from keras_dlkit.losses.task_weighting import TaskWeighting
from keras_dlkit.losses.uncertainty_weighting import UncertaintyWeighting
