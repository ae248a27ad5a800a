"""The mathematics of the parts, as pure functions of tensors."""

from keras_dlkit.ops.batch_ensemble import batch_ensemble
from keras_dlkit.ops.compressive_energy import compressive_energy
from keras_dlkit.ops.cut_mix import cut_mix
from keras_dlkit.ops.cut_mix import cut_mix_boxes
from keras_dlkit.ops.cut_out import cut_out
from keras_dlkit.ops.hyperspherical_energy import hyperspherical_energy
from keras_dlkit.ops.magnitude_masks import magnitude_masks
from keras_dlkit.ops.mix_up import mix_up
from keras_dlkit.ops.orthogonal_part import orthogonal_part
from keras_dlkit.ops.sam import sam_perturbation
from keras_dlkit.ops.sample_beta import sample_beta
from keras_dlkit.ops.score_mask import score_mask
from keras_dlkit.ops.sde_integrate import sde_integrate
from keras_dlkit.ops.uncertainty import categorical_uncertainty
from keras_dlkit.ops.uncertainty import gaussian_uncertainty
from keras_dlkit.ops.uncertainty_weighted import uncertainty_weighted
