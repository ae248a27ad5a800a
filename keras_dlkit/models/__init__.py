"""Models around networks of your own."""

from keras_dlkit.models.batch_ensemble import BatchEnsemble
