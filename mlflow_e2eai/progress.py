"""Progress of long work: a bar in a terminal, silence in a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], title: str, *, unit: str) -> Iterator[Item]:
    """The items, with a bar on stderr while they are worked through.

    There is none where stderr is no terminal, nor where tqdm's own ``TQDM_DISABLE`` is set.

    Args:
        items: What is worked through; their number is shown where it is known.
        title: What is done.
        unit: What they are.
    """
    # tqdm.auto would draw a widget in notebooks, and warns where ipywidgets is missing.
    from tqdm import tqdm

    yield from tqdm(items, desc=title, unit=f" {unit}", leave=False, disable=None)
