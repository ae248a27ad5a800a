import importlib
import inspect
import pkgutil
import re

import keras
import numpy as np
import pytest

import keras_dlkit as dlkit
from tests.running import slow_to_compile

ARXIV = re.compile(r"arxiv\.org/abs/([\d.]+)|doi\.org/([^)\s]+)")


def parse(bibtex):
    """`{key: (kind, fields)}`, with an error for what BibTeX would refuse."""
    entries, rest = {}, bibtex.strip()
    while rest:
        kind, key, rest = re.match(
            r"@([a-z]+)\{([a-z0-9]+),\s*(.*)", rest, re.DOTALL
        ).groups()
        fields = {}
        while not rest.startswith("}"):
            name, rest = re.match(
                r"([a-z]+)\s*=\s*(\{.*)", rest, re.DOTALL
            ).groups()
            value, rest = braced(rest)
            assert name not in fields
            fields[name] = value
            rest = rest.removeprefix(",").lstrip()
        assert key not in entries
        entries[key] = kind, fields
        rest = rest[1:].lstrip()
    return entries


def braced(text):
    """What is within the first pair of braces, and what follows."""
    depth = 0
    for index, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[1:index], text[index + 1 :]
    raise AssertionError(f"A brace is not closed: {text}")


def public_parts():
    modules = [
        importlib.import_module(f"keras_dlkit.{module.name}")
        for module in pkgutil.iter_modules(dlkit.__path__)
        if module.ispkg and not module.name.startswith("_")
    ]
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }


PARTS = public_parts()


def references(part):
    """The papers that the docstring refers to, the main one first."""
    section = inspect.getdoc(part).partition("References:")[2]
    return [a or b for a, b in ARXIV.findall(section)]


def own_papers(part):
    return [
        paper
        for papers, _ in vars(part).get("__papers__", ())
        for paper in papers
    ]


@pytest.mark.parametrize("name", [n for n in PARTS if references(PARTS[n])])
def test_a_part_with_a_paper_cites_it(name):
    part = PARTS[name]
    main, *_ = references(part)
    cited = parse(dlkit.citation(part)).values()
    assert main in [
        fields.get("eprint") or fields.get("doi") for _, fields in cited
    ]


def test_what_a_part_cites_its_page_refers_to():
    for name, part in PARTS.items():
        referred = references(part)
        for paper in own_papers(part):
            assert (paper.arxiv or paper.doi) in referred, name


def test_entries_are_valid_and_keys_are_of_one_paper():
    papers = {paper for part in PARTS.values() for paper in own_papers(part)}
    assert len(papers) > 30
    for attribute in ("key", "title", "arxiv"):
        values = [getattr(p, attribute) or p.key for p in papers]
        assert len(set(values)) == len(papers), attribute
    for paper in papers:
        (kind, fields), *_ = parse(paper.bibtex()).values()
        venue = {
            "inproceedings": "booktitle",
            "article": "journal",
            "misc": "eprint",
        }[kind]
        assert {"title", "author", "year", venue} <= set(fields)
        assert 1990 < int(fields["year"]) < 2030
        assert fields["title"] == f"{{{paper.title}}}"
        for author in fields["author"].split(" and "):
            assert re.fullmatch(
                r"[A-Z][\w.{}\\\"'-]*( [A-Z][\w.{}\\\"'-]*)+", author
            )
        assert paper.bibtex().isascii()


def keys(*objects):
    return set(parse(dlkit.citation(*objects)))


def test_an_object_cites_what_it_uses():
    sam = dlkit.optimizers.SAM
    plain = {"foret2021sharpness"}
    assert keys(sam) == keys(sam("sgd")) == plain
    assert keys(sam("sgd", adaptive="weights")) == plain | {"kwon2021asam"}
    assert "mueller2023normalization" in keys(sam("sgd", variables="gamma"))
    ticket = dlkit.callbacks.LotteryTicket
    found = {"frankle2019lottery"}
    assert keys(ticket(3, 2)) == found
    for options, key in [
        ({"rewind": 4}, "frankle2019stabilizing"),
        ({"rewind": "learning_rate"}, "renda2020comparing"),
        ({"score": "movement"}, "zhou2019deconstructing"),
        ({"early_bird": 0.1}, "you2020drawing"),
    ]:
        assert keys(ticket(3, 2, **options)) == found | {key}
    schedule = dlkit.schedules.ConstantSparsity(0.5)
    pruning = dlkit.callbacks.MagnitudePruning
    assert keys(pruning(schedule)) == {"zhu2017prune"}
    assert "mishra2021accelerating" in keys(pruning(schedule, n_m=(2, 4)))
    kinds = {0: "regression", 1: "regression"}
    weighting = dlkit.losses.UncertaintyWeighting
    assert "liebel2018auxiliary" not in keys(weighting(kinds))
    assert "liebel2018auxiliary" in keys(weighting(kinds, formula="liebel"))


def test_a_subclass_cites_its_base():
    assert keys(dlkit.optimizers.GSAM) == {
        "foret2021sharpness",
        "zhuang2022surrogate",
    }


def everything():
    net = keras.Sequential(
        [
            keras.Input((4,)),
            dlkit.layers.Supermask(keras.layers.Dense(5)),
            keras.layers.Dense(3),
        ]
    )
    energy = dlkit.regularizers.HypersphericalEnergy(0.1)
    dlkit.regularizers.regularize(net, energy, include="dense_[0-9]+/|dense/")
    mixes = [
        dlkit.layers.MixUp(num_classes=3),
        dlkit.layers.MixUp(0.4, num_classes=3),
    ]
    model = dlkit.attach(net, dlkit.layers.RandomChoice(mixes))
    sam = dlkit.optimizers.SAM("sgd")
    model.compile(dlkit.optimizers.Masked(sam), "categorical_crossentropy")
    return model


def test_a_model_cites_all_it_holds_once():
    model = everything()
    expected = {
        "ramanujan2020what",
        "liu2018learning",
        "zhang2018mixup",
        "foret2021sharpness",
    }
    assert keys(model) == expected
    assert keys(model, model, dlkit.layers.MixUp) == expected
    assert keys(model.optimizer) == {"foret2021sharpness"}
    # The network alone has what lives in it.
    assert keys(model.model) == {"ramanujan2020what", "liu2018learning"}
    nested = keras.Sequential([keras.Input((4,)), model.model])
    assert keys(nested) == {"ramanujan2020what", "liu2018learning"}


@slow_to_compile
def test_a_callback_does_not_cite_the_model_it_saw():
    model = everything()
    ticket = dlkit.callbacks.LotteryTicket(1, 1)
    stop = keras.callbacks.EarlyStopping("loss")
    model.fit(
        np.ones((4, 4)), np.arange(4) % 3, callbacks=[ticket, stop], verbose=0
    )
    assert keys(ticket, stop) == keys([ticket, stop]) == {"frankle2019lottery"}


def test_what_comes_from_no_paper_cites_none():
    assert dlkit.citation() == ""
    assert dlkit.citation(keras.layers.Dense(3), dlkit.optimizers.Masked) == ""


@pytest.mark.parametrize("value", ["SAM", 3, None, dlkit, [keras.layers, "x"]])
def test_what_is_no_part_is_refused(value):
    with pytest.raises(TypeError, match="parts of keras_dlkit.*Received: "):
        dlkit.citation(value)
