"""The mathematics of the parts, as pure functions of tensors."""

from keras_dlkit.ops.mixing import mix_up
from keras_dlkit.ops.mixing import sample_beta
from keras_dlkit.ops.sam import sam_perturbation
