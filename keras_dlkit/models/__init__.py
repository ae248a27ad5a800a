"""Models: networks that are trained in a way of their own."""

from keras_dlkit.models.batch_ensemble import BatchEnsemble
from keras_dlkit.models.sde_net import SDENet
