"""Callbacks for `fit`."""

from keras_dlkit.callbacks.hyperspherical_energy_logger import (
    HypersphericalEnergyLogger,
)
from keras_dlkit.callbacks.lottery_ticket import LotteryTicket
from keras_dlkit.callbacks.magnitude_pruning import MagnitudePruning
from keras_dlkit.callbacks.resume import Resume
from keras_dlkit.callbacks.sigma_schedule import SigmaSchedule
