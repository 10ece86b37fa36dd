"""Values taken apart and put together again: nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any, NamedTuple

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.pytorch.pytree import Tree

pytestmark = pytest.mark.exporters


class Leaf:
    """Stands for a tensor: equal to itself only."""


@dataclasses.dataclass
class Tokens:
    ids: Any
    mask: Any = None


class Pair(NamedTuple):
    first: Any
    second: Any


CONSTANTS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=4)
)
KEYS = st.text("ab.", min_size=1, max_size=3) | st.integers(0, 9)
VALUES = st.recursive(
    st.builds(Leaf) | CONSTANTS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.builds(Tokens, ids=inner, mask=inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


def taken_apart(value):
    try:
        return pytree.flatten(value)
    except InvalidInputError:  # two leaves of one name
        reject()


@given(VALUES)
def test_what_was_taken_apart_comes_together_even_through_json(value):
    tree, leaves = taken_apart(value)
    kept = from_json(Tree, to_json(tree))
    again = pytree.unflatten(kept, leaves)
    assert (again, type(again)) == (value, type(value))
    assert list(leaves) == pytree.names(kept)


@given(VALUES)
def test_the_leaves_of_a_value_of_the_same_shape_are_found_by_the_tree(value):
    tree, leaves = taken_apart(value)
    assert pytree.select(tree, value) == leaves


@given(VALUES)
def test_leaves_keep_their_place_under_new_names(value):
    tree, leaves = taken_apart(value)
    new = {name: f"new {at}" for at, name in enumerate(leaves)}
    under_new_names = {new[name]: leaf for name, leaf in leaves.items()}
    assert pytree.unflatten(pytree.rename_leaves(tree, new), under_new_names) == value


def test_names_are_paths_joined_with_dots():
    leaf = Leaf()
    assert list(pytree.flatten(leaf)[1]) == ["output"]
    assert list(pytree.flatten((leaf, leaf))[1]) == ["output_0", "output_1"]
    assert list(pytree.flatten((leaf, {"up": [leaf]}))[1]) == ["output_0", "output_1.up.0"]
    nested = {"tokens": Tokens(leaf, (leaf, None)), "pair": Pair(leaf, 3)}
    assert list(pytree.flatten(nested)[1]) == ["tokens.ids", "tokens.mask.0", "pair.first"]


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(InvalidInputError, match=r"Two tensors would be named 'a\.b'"):
        pytree.flatten({"a": {"b": Leaf()}, "a.b": Leaf()})


def test_a_key_that_is_no_name_is_refused():
    with pytest.raises(InvalidInputError, match="has the key None"):
        pytree.flatten({None: Leaf()})


@pytest.mark.parametrize(
    "name",
    [
        "builtins:exec",
        "os:system",
        "test_trees:Leaf",
        "nowhere.to.be.found:Tokens",
        "test_trees:Absent",
    ],
)
def test_only_classes_of_fields_that_are_imported_already_are_called(name):
    tree = Tree(kind="object", text=name, keys=("ids",), parts=(Tree(kind="leaf", text="ids"),))
    assert pytree.unflatten(tree, {"ids": 1}) == {"ids": 1}
    assert "nowhere" not in sys.modules


def test_a_leaf_that_is_gone_is_none():
    tree, _ = pytree.flatten({"kept": Leaf(), "gone": Leaf()})
    assert pytree.unflatten(tree, {"kept": 1}) == {"kept": 1, "gone": None}


def test_a_number_that_json_lacks_stays_a_number():
    tree, _ = pytree.flatten([math.inf, -math.inf])
    assert pytree.unflatten(from_json(Tree, to_json(tree)), {}) == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"tokens": {"ids": 1}}, r"tokens\.mask is missing"),
        ({"tokens": {"ids": 1, "mask": 2, "odd": 3}}, r"tokens has \['odd'\]"),
        ({"tokens": {"ids": 1, "mask": 2}, "scale": 3.0}, "scale is fixed at 2.0, but 3.0"),
        ({"tokens": 1}, "is missing"),
        ({"odd": 1}, r"tokens\.ids is missing|tokens is missing"),
    ],
)
def test_a_value_of_another_shape_is_refused_with_the_place(value, said):
    tree, _ = pytree.flatten({"tokens": {"ids": Leaf(), "mask": Leaf()}, "scale": 2.0})
    with pytest.raises(InvalidInputError, match=said):
        pytree.select(tree, value)


def test_constants_may_be_left_out():
    tree, _ = pytree.flatten({"ids": Leaf(), "scale": 2.0, "mask": None})
    assert pytree.select(tree, {"ids": 1}) == {"ids": 1}
    assert pytree.select(tree, {"ids": 1, "scale": 2.0}) == {"ids": 1}
