"""How others judge, as the rule that their documentation gives: not their packages."""

from __future__ import annotations

import numpy as np


def elementwise(reference, candidate, samples):
    """Whether it passes Polygraphy's default, the simple comparator.

    One call for each sample; names and shapes must agree, and |a - b| <= 1e-5 + 1e-5·|b|.
    """
    for sample in samples:
        right, given = reference(_copies(sample)), candidate(_copies(sample))
        if set(right) != set(given):
            return False
        if not all(_close(right[name], given[name]) for name in right):
            return False
    return True


def finite(reference, candidate, samples):
    """Whether it passes Model Navigator's correctness step with no function of the user's own.

    One call for each sample; nothing may be missing, and nothing NaN or infinite.
    """
    for sample in samples:
        right, given = reference(_copies(sample)), candidate(_copies(sample))
        if len(right) != len(given) or not right.keys() <= given.keys():
            return False
        if not all(_is_finite(part) for value in given.values() for part in _parts(value)):
            return False
    return True


def _close(right, given):
    right, given = _parts(right), _parts(given)
    if [part.shape for part in right] != [part.shape for part in given]:
        return False
    return all(
        np.array_equal(a, b)
        if a.dtype.kind not in "fiu"
        else np.allclose(b.astype("f8"), a.astype("f8"), rtol=1e-5, atol=1e-5, equal_nan=True)
        for a, b in zip(right, given, strict=True)
    )


def _is_finite(part):
    return part.dtype.kind != "f" or bool(np.isfinite(part).all())


def _parts(value):
    return [np.array(part) for part in value] if isinstance(value, list) else [np.array(value)]


def _copies(sample):
    return {name: value.copy() for name, value in sample.items()}
