"""Batches that were seen before: drawn again, and nothing else."""

import inspect

import keras


def needs_all(arguments):
    """Whether the order of an epoch may hang on the epochs before it.

    That of arrays and of a `PyDataset` without hooks of epochs does not, up
    to the random states of the process, which are saved; nor does that of a
    `DataLoader` of PyTorch that draws from these. A generator, or data cut by
    `steps_per_epoch`, goes on where the last epoch ended; a `tf.data.Dataset`
    may be shuffled anew each time.
    """
    data = arguments["x"]
    if arguments["steps_per_epoch"] is not None or inspect.isgenerator(data):
        return True
    if isinstance(data, keras.utils.PyDataset):
        return any(
            getattr(type(data), hook)
            is not getattr(keras.utils.PyDataset, hook)
            for hook in ("on_epoch_begin", "on_epoch_end")
        )
    return not (hasattr(data, "shape") or _is_plain_loader(data)) and not (
        isinstance(data, (list, tuple, dict))
    )


def _is_plain_loader(data):
    """Whether what chooses rows is PyTorch's, and draws from its own state.

    A `generator`, a sampler of the user's, a data set that is a stream and
    workers that live on after an epoch, with what they draw from, have a
    state that nobody saves: in another process it begins anew.
    """
    if not _is_of_torch(data) or not hasattr(data, "batch_sampler"):
        return False
    if data.persistent_workers:
        return False
    batches = data.batch_sampler
    choosing = [data, data.sampler, batches, getattr(batches, "sampler", None)]
    return not hasattr(data.dataset, "__iter__") and all(
        _is_of_torch(each) and getattr(each, "generator", None) is None
        for each in choosing
        if each is not None
    )


def _is_of_torch(instance):
    return type(instance).__module__.startswith("torch.utils.data")


class Replay:
    """Stands in for the functions of a model that train and test on batches.

    Args:
        model: `keras.Model`.
        logs: What a batch is to return.
        see: Function that is given the first batch, before it is passed over.
    """

    def __init__(self, model, logs, see):
        self.model, self.logs, self.see = model, logs, see
        self.train = self.test = None

    def begin(self, test):
        """Passes over batches of training from now on, and of validation."""
        if self.train is None:
            self.train = self.model.train_function
            self.model.train_function = self._pass_over
        if test and self.test is None:
            self.test = [self.model.test_function]
            self.model.test_function = self._pass_over

    def end_of_tests(self):
        if self.test is not None:
            (self.model.test_function,) = self.test
            self.test = None

    def end(self):
        self.end_of_tests()
        if self.train is not None:
            self.model.train_function = self.train
            self.train = None

    def _pass_over(self, *arguments):
        """In the place of a function of data; on JAX, of a state and data."""
        *state, source = arguments
        try:
            batch = self._draw(source)
            if self.see is not None:
                see, self.see = self.see, None
                see(batch)
        except StopIteration:
            raise
        except BaseException:  # the model must not be left like this
            self.end()
            raise
        return (self.logs, *state) if state else self.logs

    def _draw(self, source):
        if not hasattr(source, "__next__"):  # on PyTorch it is drawn already
            return source[0]
        first = next(source)
        for _ in range(self.model.steps_per_execution - 1):
            try:
                next(source)
            except StopIteration:
                break
        return first
