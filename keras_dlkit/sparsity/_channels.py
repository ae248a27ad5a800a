"""Which channels of a network can go."""

import numpy as np

from keras_dlkit.sparsity._rules import has_weights


class Channels:
    """Constants, needs and what to keep, a channel a tensor."""

    def __init__(self, graph, rules):
        self.graph, self.rules = graph, rules
        sizes = [shape[-1] if len(shape) > 1 else 1 for shape in graph.shapes]
        # The last axis of unknown length is one that all of is kept.
        self.sizes = [1 if size is None else size for size in sizes]
        self.constants = [np.full(size, np.nan) for size in self.sizes]
        self.needed = [np.zeros(size, bool) for size in self.sizes]
        self.find_constants()
        self.find_needs()
        self.keep = [
            need & np.isnan(constants)
            for need, constants in zip(self.needed, self.constants)
        ]
        self.find_keep()

    def steps(self):
        return zip(self.graph.nodes, self.rules)

    def find_constants(self):
        for node, rule in self.steps():
            ins = [self.constants[i] for i in node.inputs]
            for out in node.outputs:
                self.constants[out] = rule.constants(ins, self.sizes[out])

    def find_needs(self):
        for index in self.graph.outputs:
            self.needed[index][:] = True
        for node, rule in reversed(list(self.steps())):
            if not node.outputs:
                continue
            out = node.outputs[0]
            ins = [self.constants[i] for i in node.inputs]
            found = rule.needs(ins, self.constants[out], self.needed[out])
            for index, need in zip(node.inputs, found):
                self.needed[index] |= need

    def find_keep(self):
        for index in (*self.graph.inputs, *self.graph.outputs):
            self.keep[index][:] = True
        for node, rule in self.steps():
            calls = len(self.graph.calls(node.layer))
            for i in node.inputs:
                bound = rule.unfoldable(self.constants[i], calls)
                # Of several calls each has its own needs, but one bias.
                self.keep[i] |= bound if calls > 1 else bound & self.needed[i]
        before = None
        while before != (now := self.kept()):
            before = now
            self.couple()

    def kept(self):
        return sum(int(keep.sum()) for keep in self.keep)

    def couple(self):
        for keep in self.keep:
            if not keep.any():  # no layer is of no channels
                keep[:1] = True
        first = {}
        for node, rule in self.steps():
            for out in node.outputs:
                ins = [self.keep[i] for i in node.inputs]
                rule.couple(ins, self.keep[out])
            if has_weights(node.layer):  # shared: the same in all calls
                other = first.setdefault(id(node.layer), node)
                for mine, others in zip(
                    (*node.inputs, *node.outputs),
                    (*other.inputs, *other.outputs),
                ):
                    self.keep[mine] |= self.keep[others]
                    self.keep[others] |= self.keep[mine]

    def of(self, node):
        """What to keep of the input and the output, and the constants."""
        first = node.inputs[0]
        return (
            self.keep[first],
            self.keep[node.outputs[0]],
            self.constants[first],
        )
