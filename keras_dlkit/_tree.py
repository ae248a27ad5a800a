"""Structures of tensors, the way all parts walk them: `None` stays `None`."""

from keras import tree


def map_leaves(function, structure):
    """`function(leaf)` over the leaves."""
    return map_with_path(lambda path, leaf: function(leaf), structure)


def map_with_path(function, structure):
    """`function(path, leaf)`, the path a tuple of keys and indices."""
    if not tree.is_nested(structure):  # of one tensor it takes no time
        return None if structure is None else function((), structure)
    leaves = tree.flatten_with_path(structure)
    return tree.pack_sequence_as(
        structure,
        [
            None if leaf is None else function(path, leaf)
            for path, leaf in leaves
        ],
    )


def leaves(structure):
    """The leaves that are there."""
    return [leaf for leaf in tree.flatten(structure) if leaf is not None]
