"""How others judge the same answers and the same calls.

Polygraphy judges for itself where it is installed. Its rule is written down here as well, for where
it is not, from its source of version 0.53.6. The others are their rules only, from their sources at
the commits named.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

POLYGRAPHY = find_spec("polygraphy") is not None

# Numbers


def answers(reference, candidate, samples):
    """What both answer, one call for each sample, as both peers ask."""
    for sample in samples:
        yield plain(reference(plain(sample))), plain(candidate(plain(sample)))


def passes(judge, reference, candidate, samples):
    """Whether all answers pass."""
    return all(judge(right, given) for right, given in answers(reference, candidate, samples))


def polygraphy(right, given):
    """Whether one answer passes Polygraphy's `Comparator.compare_accuracy` with its defaults."""
    return _real_polygraphy(right, given) if POLYGRAPHY else polygraphy_rule(right, given)


def polygraphy_title():
    """Which of the two it was."""
    return f"Polygraphy {version('polygraphy')}" if POLYGRAPHY else "Polygraphy's rule"


def _real_polygraphy(right, given):
    from polygraphy.comparator import Comparator, IterationResult, RunResults
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    results = RunResults()
    for name, outputs in (("reference", right), ("candidate", given)):
        results.append((name, [IterationResult(outputs=outputs, runner_name=name)]))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            return bool(Comparator.compare_accuracy(results))
        except (PolygraphyException, TypeError, ValueError, AttributeError):
            return False  # what it cannot take it does not pass


def polygraphy_rule(right, given):
    """The same from its source: `comparator/compare.py`, `SimpleCompareFunc`.

    An element is wrong when it is off by more than 1e-5 and by more than 1e-5 of the value given;
    NaN is never equal, nor is an infinity. The reference's outputs are looked up by name, then by a
    part of a name, then by position; one that is found nowhere, or whose place is taken, is
    skipped, and what the candidate has beside is not looked at.
    """
    pairs = [
        (value, _found(name, at, right, given)) for at, (name, value) in enumerate(right.items())
    ]
    judged = [(one, given[other]) for one, other in pairs if other is not None]
    return bool(judged) and all(_close(one, other) for one, other in judged)


def _found(name, at, right, given):
    alike = [other for other in given if name in other or other in name]
    if name in given:
        return name
    found = alike[0] if alike else dict(enumerate(given)).get(at)
    return None if found in right else found


def _close(right, given):
    if not all(isinstance(one, np.ndarray) and one.dtype.kind in "fiub" for one in (right, given)):
        return False
    if right.shape != given.shape:
        return False
    if right.dtype.kind == given.dtype.kind == "b":
        return np.array_equal(right, given)
    with np.errstate(all="ignore"):
        wide = given.astype("f8")
        apart = np.abs(right.astype("f8") - wide)
        share = apart / np.abs(np.where(wide == 0, np.finfo("f8").eps, wide))
        return bool(((apart <= 1e-5) | (share <= 1e-5)).all())


def navigator(right, given):
    """Whether one answer passes Model Navigator's correctness step.

    model_navigator/commands/correctness/correctness_script.py at commit 844f4740 (0.14.0): as many
    outputs, each of the reference's names, nothing NaN or infinite, and shapes that NumPy can
    subtract. How far the numbers are apart it reports and does not judge.
    """
    if len(right) != len(given):
        return False
    try:
        for name, value in right.items():
            if np.isnan(given[name]).any() or np.isinf(given[name]).any():
                return False
            with np.errstate(all="ignore"):
                np.abs(value - given[name]).max()
    except (KeyError, TypeError, ValueError):
        return False  # its process ends there, and so does the step
    return True


def plain(tensors):
    """Copies, one element after the other in memory, as a runner gives them."""
    return {
        name: np.array(value, order="C") if isinstance(value, np.ndarray) else value
        for name, value in tensors.items()
    }


# Times


def perf_analyzer(calls_ms):
    """Whether perf_analyzer finds calls steady.

    src/inference_profiler.cc (`DetermineStability`) at commit 263c5f6, in its mode of 50 requests a
    window: it ends at the first three windows in a row whose throughputs, and whose mean latencies,
    are within 10 % (most to least), and gives up after ten windows.
    """

    def steady(means):
        return max(means) <= 1.1 * min(means)

    return _steady(calls_ms, size=50, steady=steady)


def navigator_profiler(calls_ms):
    """Whether Model Navigator finds calls steady.

    model_navigator/commands/performance/utils.py (`is_measurement_stable`) at commit 844f4740, in
    windows of 25 requests: it ends at the first three in a row whose mean latencies each lie within
    10 % of their mean, and fails after ten windows.
    """

    def steady(means):
        return all(abs(mean - np.mean(means)) < 0.1 * np.mean(means) for mean in means)

    return _steady(calls_ms, size=25, steady=steady)


def _steady(calls_ms, *, size, steady):
    means = [
        np.mean(calls_ms[at : at + size])
        for at in range(0, min(10 * size, len(calls_ms) - size + 1), size)
    ]
    return any(steady(means[at : at + 3]) for at in range(len(means) - 2))
