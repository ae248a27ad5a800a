"""Schedules of what callbacks set while a model trains."""

from keras_dlkit.schedules.constant_sparsity import ConstantSparsity
from keras_dlkit.schedules.polynomial_sparsity import PolynomialSparsity
