"""The PNG files."""

import dataclasses
import math
import struct

import pytest
from small_manifest import CPU, HALF, TORCH, compared, manifest, measured

from mlflow_e2eai.report.plots import plots

TIMES = {TORCH.variant: 2.0, CPU.variant: 1.0, HALF.variant: 0.5}
LATENCY = {
    "min": measured(TIMES, items=1),
    "opt": measured(TIMES),
    "max": measured({TORCH.variant: 9.0}, items=64),
}


def size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


def test_there_is_a_picture_of_latency_and_one_of_error_against_it():
    found = plots(manifest(TORCH, CPU, HALF, latency=LATENCY))

    assert sorted(found) == ["latency.png", "pareto.png"]
    assert all(wide > 1000 and high > 500 for wide, high in map(size, found.values()))


def test_the_same_evidence_gives_the_same_pictures():
    found = manifest(TORCH, CPU, HALF, latency=LATENCY)

    assert plots(found) == plots(found)


def test_what_was_not_measured_is_not_drawn():
    assert plots(manifest()) == {}
    assert plots(manifest(TORCH, CPU)) == {}


@pytest.mark.parametrize("error", [0.0, math.nan, math.inf])
def test_an_error_that_has_no_logarithm_breaks_nothing(error):
    entry = dataclasses.replace(CPU, parity={"data": compared(error)})

    assert "latency.png" in plots(manifest(TORCH, entry, latency=LATENCY))


def test_a_name_is_no_formula():
    names = ["$\\frac{$/fp32", "_hidden/fp16", "a\x00\ud800/int8"]
    entries = [dataclasses.replace(CPU, variant=name) for name in names]
    times = {TORCH.variant: 1.0, **dict.fromkeys(names, 2.0)}

    assert len(plots(manifest(TORCH, *entries, latency={"opt": measured(times)}))) == 2


def test_pyplot_is_left_alone():
    import matplotlib.pyplot as plt

    plots(manifest(TORCH, CPU, latency=LATENCY))

    assert plt.get_fignums() == []
