"""The two steps of SDE-Net, as one would write them without keras_dlkit.

In the order of the paper: one of stem, drift and head, then, with the new stem,
one of the diffusion. The layers and optimizers are those of Keras. No metrics.
"""

import functools

import keras
from _sde_nets import NUM_STEPS
from _sde_nets import OOD_SCALE
from _sde_nets import SIGMA
from _sde_nets import loss
from _sde_nets import optimizers
from _training import wait_for_torch
from keras import ops


class SDENetByHand:
    """Losses of the two steps, and what each of them trains.

    Steps of length 1, so that no time step is multiplied with.
    """

    def __init__(self, parts):
        self.stem, self.drift, self.diffusion, self.head = parts
        self.seeds = keras.random.SeedGenerator(0)
        self.cross_entropy = loss()
        self.optimizers = optimizers()

    def build(self, x):
        self.task_loss(ops.convert_to_tensor(x), ops.zeros(len(x), "int32"))
        first = [self.stem, self.drift, self.head]
        groups = [
            [v for part in first for v in part.trainable_variables],
            self.diffusion.trainable_variables,
        ]
        for optimizer, variables in zip(self.optimizers, groups):
            optimizer.build(variables)
        return groups

    def normal(self, x):
        return keras.random.normal(ops.shape(x), seed=self.seeds)

    def paths(self, x):
        state = self.stem(x, training=True)
        noise = SIGMA * self.diffusion(state, training=True)
        noise = ops.reshape(noise, (-1, 1, 1, 1))
        for step in range(NUM_STEPS):
            time = ops.full((ops.shape(x)[0], 1), float(step))
            slope = self.drift([state, time], training=True)
            state = state + slope + noise * self.normal(state)
        return self.head(state, training=True)

    def task_loss(self, x, y):
        return self.cross_entropy(y, self.paths(x))

    def diffusion_loss(self, x, y):
        known = self.unfamiliar(x)
        unknown = self.unfamiliar(x + OOD_SCALE * self.normal(x))
        known, unknown = 1.0 - known, unknown
        logs = [ops.log(ops.maximum(p, 1e-7)) for p in (known, unknown)]
        return -ops.mean(logs[0]) - ops.mean(logs[1])

    def unfamiliar(self, x):
        hidden = ops.stop_gradient(self.stem(x, training=True))
        return self.diffusion(hidden, training=True)

    def losses(self):
        return self.task_loss, self.diffusion_loss


def _tensorflow_steps(net, source):
    import tensorflow as tf

    groups = net.build(next(source(1))[0])
    net.stem.compile()

    # With XLA where Keras would: not on CPU.
    @tf.function(jit_compile=net.stem.jit_compile)
    def both(x, y):
        for loss_of, own, optimizer in zip(
            net.losses(), groups, net.optimizers
        ):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([v.value for v in own])
                value = loss_of(x, y)
            gradients = tape.gradient(value, [v.value for v in own])
            optimizer.apply(gradients, own)
        return value

    @tf.function
    def step(batches):
        return both(*next(batches))

    def run(steps):
        batches = source(steps)
        for _ in range(steps):
            value = step(batches)
        value.numpy()

    return run


def _jax_steps(net, source):
    import jax

    groups = net.build(next(source(1))[0])
    seed_state = net.seeds.state

    def gradients(loss_of, which, values, seed, batch):
        def of(own_values):
            at = list(values)
            at[which] = own_values
            pairs = [
                pair for own, to in zip(groups, at) for pair in zip(own, to)
            ]
            with keras.StatelessScope([*pairs, (seed_state, seed)]) as scope:
                value = loss_of(*batch)
            return value, scope.get_current_value(seed_state)

        return jax.grad(of, has_aux=True)(values[which])

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        values, slots, seed = [list(state[0]), list(state[1]), state[2]]
        for which, loss_of in enumerate(net.losses()):
            found, seed = gradients(loss_of, which, values, seed, batch)
            values[which], slots[which] = net.optimizers[which].stateless_apply(
                slots[which], found, values[which]
            )
        return values, slots, seed

    state = jax.tree.map(
        jax.numpy.copy,
        (
            [[v.value for v in own] for own in groups],
            [[v.value for v in o.variables] for o in net.optimizers],
            seed_state.value,
        ),
    )

    def run(steps):
        nonlocal state
        batches = source(steps)
        for _ in range(steps):
            state = step(state, next(batches))
        jax.block_until_ready(state)

    return run


def _torch_steps(net, source):
    import torch

    groups = net.build(next(source(1))[0])

    def one_step(x, y):
        for loss_of, own, optimizer in zip(
            net.losses(), groups, net.optimizers
        ):
            # All of them: the task's loss leaves gradients at the diffusion.
            for variable in [v for group in groups for v in group]:
                variable.value.grad = None
            loss_of(x, y).backward()
            with torch.no_grad():
                optimizer.apply([v.value.grad for v in own], own)

    def run(steps):
        batches = source(steps)
        for _ in range(steps):
            one_step(*next(batches))
        wait_for_torch()

    return run


def steps_by_hand(net, source):
    """A function that trains for so many steps, and returns when they end."""
    return {
        "tensorflow": _tensorflow_steps,
        "jax": _jax_steps,
        "torch": _torch_steps,
    }[keras.config.backend()](net, source)
