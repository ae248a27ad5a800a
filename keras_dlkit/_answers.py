"""What people ask of a network, answered by the one that is attached."""


class Answers:
    """Mixed into `Attached`, before `keras.Model`."""

    @property
    def layers(self):
        return self.model.layers

    def get_layer(self, name=None, index=None):
        return self.model.get_layer(name=name, index=index)

    def summary(self, *args, **kwargs):
        return self.model.summary(*args, **kwargs)

    def count_params(self):
        return self.model.count_params()

    def export(self, *args, **kwargs):
        return self.model.export(*args, **kwargs)

    def quantize(self, *args, **kwargs):
        result = self.model.quantize(*args, **kwargs)
        self._forget_functions()
        return result

    def enable_lora(self, *args, **kwargs):
        result = self.model.enable_lora(*args, **kwargs)
        self._forget_functions()
        return result

    def _forget_functions(self):
        self.train_function = None
        self.test_function = None
        self.predict_function = None


def _answered_by_model(name):
    def get(self):
        if hasattr(self.model, name):
            return getattr(self.model, name)
        # A Sequential has no `input` and `output`: those of the graph, if
        # there is one, in which this model is a layer.
        return getattr(super(Answers, self), name)

    return property(get)


for _name in (
    "inputs",
    "outputs",
    "input",
    "output",
    "output_names",
    "input_shape",
    "output_shape",
):
    setattr(Answers, _name, _answered_by_model(_name))
