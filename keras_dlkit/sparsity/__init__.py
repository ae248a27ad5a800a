"""Functions on models with zeros in them: make, count, save, shrink."""

from keras_dlkit.sparsity.load_compact import load_compact
from keras_dlkit.sparsity.prune_at_init import prune_at_init
from keras_dlkit.sparsity.report import report
from keras_dlkit.sparsity.save_compact import save_compact
from keras_dlkit.sparsity.shrink import shrink
from keras_dlkit.sparsity.strip import strip
from keras_dlkit.sparsity.supermask import supermask
