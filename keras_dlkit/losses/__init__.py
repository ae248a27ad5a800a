"""How the losses of several outputs become one."""

from keras_dlkit.losses.task_weighting import TaskWeighting
