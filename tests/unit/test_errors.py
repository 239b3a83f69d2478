"""The exception tree: as drawn, catchable by builtin type, and whole after a pickle."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from zcontext import errors

TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if kind.__module__ == errors.__name__
]
MADE = {
    errors.ConfigError: errors.ConfigError("m", field="ratio", value=99),
    errors.DivergedError: errors.DivergedError("m", step=7, last_checkpoint="runs/6"),
    errors.MissingDependencyError: errors.MissingDependencyError("m", extra="gpu"),
}


def drawn_tree(docstring: str) -> set[str]:
    """The names in the drawing of a docstring."""
    return set(re.findall(r"\b[A-Z]\w*Error\b", docstring)) - {"ValueError", "ImportError"}


def test_every_error_is_drawn_and_every_drawn_error_exists() -> None:
    assert errors.__doc__ is not None
    assert drawn_tree(errors.__doc__) == {kind.__name__ for kind in TREE}


def test_the_drawing_check_sees_a_missing_error() -> None:
    assert drawn_tree("ZContextError\n + ConfigError (ValueError)") != {"ZContextError"}


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_is_a_zcontext_error(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.ZContextError)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.VocabularyError, ValueError),
        (errors.WindowError, ValueError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_errors_of_bad_values_are_caught_by_the_builtin_type(
    kind: type[Exception], builtin: type[Exception]
) -> None:
    assert issubclass(kind, builtin)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_its_attributes(kind: type[Exception]) -> None:
    error = MADE.get(kind) or kind("m")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == "m"
    assert vars(again) == vars(error)
