"""The train step of `Attached`: one file a backend, the same story in each.

1. The batch parts change `(x, y, sample_weight)`.
2. Clean pass: loss, metrics, batch-norm statistics and gradient at w.
3. On a step that ascends: the gradient at w + e, in a `StatelessScope` that
   holds w + e for the weights and, for every other variable, its value from
   before the clean pass. Nothing is written, so nothing is to be restored.
4. The two gradients are combined, and applied once.
"""
