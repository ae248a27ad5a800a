"""Training components for Keras 3 that attach to any `model.fit`."""

from keras_dlkit import callbacks
from keras_dlkit import layers
from keras_dlkit import losses
from keras_dlkit import metrics
from keras_dlkit import models
from keras_dlkit import ops
from keras_dlkit import optimizers
from keras_dlkit import regularizers
from keras_dlkit import schedules
from keras_dlkit import sparsity
from keras_dlkit.attach import Attached
from keras_dlkit.attach import attach
from keras_dlkit.citation import citation
from keras_dlkit.detach import detach

__version__ = "0.1.0.dev0"
