"""A layer that is a stochastic differential equation (Kong et al., 2020)."""

from typing import Any

import keras
from keras import ops

from keras_dlkit import _checks
from keras_dlkit import _isolated
from keras_dlkit import _keras
from keras_dlkit._export import export
from keras_dlkit._papers import cites
from keras_dlkit._train_step import loop
from keras_dlkit.layers._sde_nets import Carried
from keras_dlkit.layers._sde_nets import Diffusion
from keras_dlkit.layers._sde_nets import Direct
from keras_dlkit.layers._sde_nets import Drift
from keras_dlkit.layers._sde_nets import masked
from keras_dlkit.layers.concatenate_time import KONG
from keras_dlkit.ops._dtypes import as_dtype
from keras_dlkit.ops._dtypes import wide_dtype
from keras_dlkit.ops._sde_steps import SOLVERS
from keras_dlkit.ops.sde_integrate import checked_brownian
from keras_dlkit.ops.sde_integrate import integrate


@cites(KONG)
@export
class SDEBlock(keras.layers.Layer):
    r"""Moves its inputs along a drift net, with noise from a diffusion net.

    With \(\Delta\) = `t_end / num_steps`, \(t_k = k\Delta\) and standard
    normals \(z_k\) of the shape of the state,

    $$x_{k+1} = x_k + f(t_k, x_k)\,\Delta + \sigma\,g(x_0)\sqrt\Delta\,z_k$$

    from the inputs \(x_0\) to the outputs \(x_N\). One drift net is shared by
    all steps. The diffusion net is evaluated once, on the inputs. Where it
    says 0 the block is a deterministic ODE, where it says 1 its outputs are
    spread by \(\sigma\sqrt T\): that is how a network tells what it knows from
    what it does not. `keras_dlkit.models.SDENet` trains it to.

    Training is with noise. In inference the block follows the drift alone and
    does not look at the diffusion; `sample` draws paths. \(\sigma = 0\) is
    exactly the ODE in both.

    Args:
        drift: `keras.layers.Layer` that keeps the shape of the state. The time
            is given to it if it takes it: as the argument `time` (or `t`) of
            its `call`, a scalar tensor, or as the second input, of shape
            `(batch, 1)`, of a model with two inputs (see `ConcatenateTime`).
        diffusion: `keras.layers.Layer` of the state.
        num_steps: Integer, at least 1. Defaults to `6`, as in the paper.
        t_end: Float, more than 0. The time T at the end. Defaults to `6.0`.
        sigma: Float, at least 0. The noise in training. A variable: assign to
            `.sigma`, or use `keras_dlkit.callbacks.SigmaSchedule`.
        sigma_inference: Float, at least 0, the noise of `sample`; also a
            variable. The paper takes 25 to 50 times that of training. `None`
            for that of training, as it is then.
        diffusion_shape: `"sample"`: the diffusion gives one number a sample,
            `(batch, 1)`; `"channel"`: one a channel, `(batch, channels)`;
            `"element"`: one an element, of the shape of the state.
        diffusion_at: `"start"`, or `"every"` to evaluate it at each step.
        solver: `"euler"`, `"heun"` (two drift evaluations a step) or
            `"milstein"` (two of the diffusion, which it needs at `"every"`
            step and for each `"element"`, and which must depend on that
            element alone: a dense diffusion does not): see
            `keras_dlkit.ops.sde_integrate`.
        isolate_diffusion: Boolean. With `True`, as in the paper, a loss passes
            through the diffusion net without training it. `False` is a neural
            SDE that is trained by the loss.
        unroll: Boolean. A copy of the step in the graph for each step,
            instead of one loop. `None` unrolls where a loop is slow: on JAX on
            CPU, for weights of rank 3 and more, as those of convolutions (on
            PyTorch nothing is compiled). On TensorFlow it is one loop, with
            `jit_compile=True` too, where on CPU `True` may be faster for these
            weights. Defaults to `None`.
        seed: Integer, or `None` for a random one.
        **kwargs: Those of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor, the state at time 0, of any rank from 2.
        brownian: Tensor of standard normals, `(num_steps, *inputs.shape)`, in
            the place of the random ones. With them the block is noisy in
            inference too, by `sigma_inference`.
        training: Passed on by Keras.

    The mask of the inputs, as of an `Embedding`, is seen by both nets at each
    step, and is that of the outputs.

    State: layer weights: the two sigmas, float32, not trainable; those of the
        two nets. The state of the random generator.
    Runs: in every forward pass. What the nets change in themselves (as
        batch statistics), they change in each step.
    Cost: `num_steps` evaluations of the drift; in training one of the
        diffusion and random numbers for all steps at once. Compilation does
        not grow with the steps, unless unrolled. Sums over the steps are in
        float32, whatever the policy.

    Raises:
        TypeError, ValueError: At construction, for arguments out of range;
            when built, for a drift that changes the shape and a diffusion of
            a shape other than `diffusion_shape`; when called, for a `brownian`
            of another shape.

    Example:

    ```python
    import keras
    import keras_dlkit as dlkit

    block = dlkit.layers.SDEBlock(
        keras.layers.Dense(8, "relu"),
        keras.layers.Dense(1, "sigmoid"),
        num_steps=4,
        t_end=4.0,
        sigma=0.5,
    )
    x = keras.random.normal((2, 8))
    y = block(x, training=True)
    paths = block.sample(x, samples=10)  # (10, 2, 8)
    ```

    References:
        - [Kong et al., 2020](https://arxiv.org/abs/2008.10546)
    """

    def __init__(
        self,
        drift: keras.layers.Layer,
        diffusion: keras.layers.Layer,
        *,
        num_steps: int = 6,
        t_end: float = 6.0,
        sigma: float = 1.0,
        sigma_inference: float | None = None,
        diffusion_shape: str = "sample",
        diffusion_at: str = "start",
        solver: str = "euler",
        isolate_diffusion: bool = True,
        unroll: bool | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ):
        # The nets cast what they take; the state between is float32.
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.drift, self.diffusion = drift, diffusion
        self._drift = Drift(drift)
        self._diffusion = Diffusion(diffusion, diffusion_shape)
        self.num_steps = _checks.check_count("num_steps", num_steps, at_least=1)
        self.t_end = _checks.check_number("t_end", t_end)
        if self.t_end <= 0:
            raise ValueError(
                f"`t_end` must be more than 0. Received: t_end={t_end!r}"
            )
        check = _checks.check_number
        self._first_sigma = check("sigma", sigma, at_least=0)
        self.sigma = self._add_sigma("sigma", self._first_sigma)
        self.sigma_inference = self.sigma
        self._first_sigma_inference = None
        if sigma_inference is not None:
            value = check("sigma_inference", sigma_inference, at_least=0)
            self._first_sigma_inference = value
            self.sigma_inference = self._add_sigma("sigma_inference", value)
        self.diffusion_at = _checks.check_one_of(
            "diffusion_at", diffusion_at, ("start", "every")
        )
        self.solver = _checks.check_one_of("solver", solver, tuple(SOLVERS))
        if solver == "milstein" and diffusion_at == "start":
            raise ValueError(
                "`solver='milstein'` corrects for a diffusion that changes on "
                "the way, and is Euler-Maruyama for one that stays. Received: "
                "diffusion_at='start'. Use diffusion_at='every', or 'euler'."
            )
        if solver == "milstein" and diffusion_shape != "element":
            raise ValueError(
                "`solver='milstein'` is for a diffusion of each element that "
                "depends on that element alone; for others it is no better "
                f"than 'euler'. Received: diffusion_shape={diffusion_shape!r}. "
                "Use diffusion_shape='element', or 'euler'."
            )
        self.isolate_diffusion = bool(isolate_diffusion)
        self.unroll = None if unroll is None else bool(unroll)
        if seed is not None:
            seed = _checks.check_count("seed", seed, at_least=0)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True

    def build(self, inputs_shape, brownian_shape=None):
        self._drift.build(inputs_shape)
        self._diffusion.build(inputs_shape)

    def _add_sigma(self, name, value):
        return self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=False,
            autocast=False,
            name=name,
        )

    def call(self, inputs, brownian=None, training=None):
        x = as_dtype(inputs, wide_dtype(inputs))
        sigma = None
        if training or brownian is not None:
            sigma = self.sigma if training else self.sigma_inference
            if brownian is None:
                brownian = self._draw(x)
        mask = _keras.get_mask(inputs)
        outputs = self._integrate(x, sigma, brownian, mask)
        return as_dtype(outputs, self._output_dtype(inputs))

    def sample(
        self, inputs: Any, samples: int = 10, brownian: Any = None
    ) -> Any:
        """Draws paths of noise `sigma_inference`, all as one batch.

        The diffusion, and the drift of the first step, are evaluated once.

        Args:
            inputs: Tensor, as in a call. The block must be built.
            samples: Integer, at least 1. Paths of each input.
            brownian: Standard normals, `(num_steps, samples, *inputs.shape)`,
                in the place of random ones.

        Returns:
            Tensor of shape `(samples, *inputs.shape)`.
        """
        samples = _checks.check_count("samples", samples, at_least=1)
        inputs = ops.convert_to_tensor(inputs)
        return self.sample_with_diffusion(inputs, samples, brownian)[0]

    def sample_with_diffusion(
        self, inputs: Any, samples: int, brownian: Any = None
    ) -> Any:
        """The same, and the diffusion at the start, in its broadcast shape."""
        mask = _keras.get_mask(inputs)
        x = masked(as_dtype(inputs, wide_dtype(inputs)), mask)
        first = self._drift(self._time(x), x)
        shape, rows = (samples, *ops.shape(x)), ops.shape(x)[0]

        def tiled(tensor):
            expanded = ops.broadcast_to(
                ops.expand_dims(tensor, 0), (samples, *ops.shape(tensor))
            )
            return ops.reshape(
                expanded, (samples * rows, *ops.shape(tensor)[1:])
            )

        diffusion = self._diffusion_at(x)
        many = tiled(x)
        if brownian is None:
            brownian = self._draw(many)
        else:
            expected = (self.num_steps, samples, *x.shape)
            brownian = ops.reshape(
                checked_brownian(brownian, expected),
                (self.num_steps, *ops.shape(many)),
            )
        outputs = self._integrate(
            many,
            self.sigma_inference,
            brownian,
            None if mask is None else tiled(mask),
            at_start=tiled(diffusion),
            first_slope=tiled(first),
        )
        outputs = as_dtype(outputs, self._output_dtype(inputs))
        return ops.reshape(outputs, shape), diffusion

    def _draw(self, x):
        """Standard normals for all steps."""
        shape = (self.num_steps, *ops.shape(x))
        return keras.random.normal(shape, seed=self.seed_generator)

    def _time(self, x):
        return ops.zeros((), dtype=x.dtype)

    def _diffusion_at(self, x):
        if not self.isolate_diffusion:
            return self._diffusion(x)
        return _isolated.run_frozen(self.diffusion, lambda: self._diffusion(x))

    def _integrate(
        self, x, sigma, brownian, mask, at_start=None, first_slope=None
    ):
        unroll = self.unroll
        if unroll is None:
            unroll = loop.is_slow_in_loops(self._weights_in_loop(sigma))
        nets = Direct() if unroll else Carried(self._nets_in_loop(sigma))
        # In a loop the values of an isolated net are frozen before it begins.
        diffusion_at = self._diffusion_at if unroll else self._diffusion
        if sigma is not None:
            strength = as_dtype(ops.convert_to_tensor(sigma), x.dtype)
            if self.diffusion_at == "start":
                if at_start is None:
                    at_start = self._diffusion_at(masked(x, mask))
                fixed = strength * as_dtype(at_start, x.dtype)

        def drift(t, x, state):
            return nets.call(lambda: self._drift(t, masked(x, mask)), state)

        def diffusion(t, x, state):
            if sigma is None:
                return None, state
            if self.diffusion_at == "start":
                return fixed, state
            g, state = nets.call(lambda: diffusion_at(masked(x, mask)), state)
            return strength * as_dtype(g, x.dtype), state

        x, state = integrate(
            drift,
            diffusion,
            x,
            brownian if sigma is not None else None,
            nets.start,
            num_steps=self.num_steps,
            t_end=self.t_end,
            solver=self.solver,
            unroll=unroll,
            first_slope=first_slope,
        )
        nets.finish(self, state)
        return x

    def _nets_in_loop(self, sigma):
        """The nets that each step evaluates, and whether they are frozen."""
        nets = [(self.drift, False)]
        if sigma is not None and self.diffusion_at == "every":
            nets.append((self.diffusion, self.isolate_diffusion))
        return nets

    def _weights_in_loop(self, sigma):
        return [w for net, _ in self._nets_in_loop(sigma) for w in net.weights]

    def _output_dtype(self, inputs):
        wide = wide_dtype(inputs)
        return wide if wide == "float64" else self.compute_dtype

    def compute_output_shape(self, inputs_shape, brownian_shape=None):
        return inputs_shape

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "drift": serialize(self.drift),
            "diffusion": serialize(self.diffusion),
            "num_steps": self.num_steps,
            "t_end": self.t_end,
            "sigma": self._first_sigma,
            "sigma_inference": self._first_sigma_inference,
            "diffusion_shape": self._diffusion.shape,
            "diffusion_at": self.diffusion_at,
            "solver": self.solver,
            "isolate_diffusion": self.isolate_diffusion,
            "unroll": self.unroll,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("drift", "diffusion"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)
