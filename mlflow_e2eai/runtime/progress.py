"""Progress of long work: a bar in a terminal, silence in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def steps(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar, as `progress`, for work that says by itself how far it is.

    Args:
        title: What is done.

    Yields:
        To be called with what is being done, how many steps of that are done, and all of them.
    """
    from tqdm import tqdm

    with tqdm(desc=title, leave=False, disable=None) as bar:

        def show(phase: str, done: int, of: int) -> None:
            bar.total, bar.n = of, done
            bar.set_postfix_str(phase)

        yield show
