"""The pictures: what is drawn, as PNG and as SVG."""

import dataclasses
import math
import re
import struct
from html import unescape

import pytest
from example_manifest import CPU as CPU32
from example_manifest import ENGINE, shown
from example_manifest import HALF as HALF16
from example_manifest import TORCH as TORCH32
from hostile_manifest import HOSTILE, hostile
from parsed_page import Page
from small_manifest import CPU, HALF, TORCH, compared, manifest, measured

from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.report.canvas import svg
from mlflow_e2eai.report.plots import latency_picture, pareto_picture, plots, steps_picture

TIMES = {TORCH.variant: 2.0, CPU.variant: 1.0, HALF.variant: 0.5}
LATENCY = {
    "min": measured(TIMES, items=1),
    "opt": measured(TIMES),
    "max": measured({TORCH.variant: 9.0}, items=64),
}
MEASURED = manifest(TORCH, CPU, HALF, latency=LATENCY)


def texts(picture) -> list[str]:
    """The texts of a picture, in the order in which they are drawn."""
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg(picture))]


def size(content: bytes) -> tuple[int, int]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


def test_the_files_are_of_what_was_measured_and_large_enough_to_read():
    drawn = plots(MEASURED)

    assert sorted(drawn) == ["latency.png", "pareto.png"]
    assert all(wide > 1000 and high > 500 for wide, high in map(size, drawn.values()))
    assert sorted(plots(shown())) == ["latency.png", "pareto.png", "steps.png"]


def test_what_was_not_measured_is_not_drawn():
    assert plots(manifest()) == {}
    assert plots(manifest(TORCH, CPU)) == {}


def test_no_picture_is_of_two_machines():
    there = MachineEvidence(
        environment={"gpu": "L4"}, evidence=MEASURED.evidence, latency=MEASURED.latency
    )
    both = dataclasses.replace(MEASURED, elsewhere=(there,))

    assert sorted(plots(both)) == ["latency-2.png", "latency.png", "pareto-2.png", "pareto.png"]
    assert latency_picture(both, " on L4").title == "Latency by batch size on L4"


def test_the_same_evidence_gives_the_same_bytes():
    assert plots(shown()) == plots(shown())
    for draw in (latency_picture, pareto_picture, steps_picture):
        assert svg(draw(shown())) == svg(draw(shown()))


def test_latency_names_its_sizes_and_the_end_of_each_line():
    drawn = texts(latency_picture(shown()))

    assert [text for text in drawn if text in ("1", "8", "64")][:3] == ["1", "8", "64"]
    assert {"batch size", "median latency, ms"} <= set(drawn)
    assert {TORCH32, CPU32, HALF16, ENGINE} <= set(drawn)
    assert "5 variants at 3 sizes" in latency_picture(shown()).description


def test_sizes_that_do_not_tell_benchmarks_apart_stand_side_by_side():
    latency = {name: measured({"torch/fp32": 1.0}) for name in ("opt", "max S, min others")}
    drawn = texts(latency_picture(manifest(TORCH, latency=latency)))

    assert {"corner of the profile (batch size)", "opt (8)"} <= set(drawn)


def test_error_against_latency_leaves_the_reference_out():
    drawn = texts(pareto_picture(shown()))

    assert {CPU32, HALF16, ENGINE, "median latency at 8 items, ms"} <= set(drawn)
    assert TORCH32 not in drawn


def test_errors_without_a_logarithm_have_lanes_of_their_own():
    odd = [
        dataclasses.replace(CPU, variant=f"v{at}/fp32", parity={"data": compared(error)})
        for at, error in enumerate((math.nan, math.inf, 0.0, 5e-324, 1e308, 1e-6))
    ]
    times = {"torch/fp32": 1.0, **{entry.variant: 1.0 + at for at, entry in enumerate(odd)}}
    drawn = texts(pareto_picture(manifest(TORCH, *odd, latency={"opt": measured(times)})))

    assert {"0", "not finite", *(entry.variant for entry in odd)} <= set(drawn)


@pytest.mark.parametrize("error", [0.0, math.nan, math.inf])
def test_one_error_without_a_logarithm_breaks_nothing(error):
    entry = dataclasses.replace(CPU, parity={"data": compared(error)})

    assert set(plots(manifest(TORCH, entry, latency=LATENCY))) == {"latency.png", "pareto.png"}


def test_of_many_variants_few_are_named():
    drawn = texts(latency_picture(shown(many=40)))

    assert sum("/fp32" in text for text in drawn) == 7
    assert TORCH32 in drawn
    assert "not measured" not in drawn


def test_the_steps_are_named_with_their_variants():
    drawn = texts(steps_picture(shown()))

    assert {"export", "clean", "convert fp16", "compared with the step before"} <= set(drawn)


def test_a_name_is_no_formula():
    names = ["$\\frac{$/fp32", "_hidden/fp16", "a\x00\ud800/int8"]
    entries = [dataclasses.replace(CPU, variant=name) for name in names]
    times = {TORCH.variant: 1.0, **dict.fromkeys(names, 2.0)}
    odd = manifest(TORCH, *entries, latency={"opt": measured(times)})

    assert len(plots(odd)) == 2
    shown_names = {"$\\frac{$/fp32", "_hidden/fp16", "a\ufffd\ufffd/int8"}
    assert shown_names <= set(texts(latency_picture(odd)))


def test_a_hostile_name_stays_text_whatever_its_letters():
    for name in (HOSTILE, "]]>", "\u0363", "\u4e2d\u6587"):
        odd = hostile(name)
        for picture in (latency_picture(odd), pareto_picture(odd)):
            tags = {tag for tag, _ in Page(svg(picture)).tags}
            assert not tags & {"script", "image", "img", "foreignobject", "a"}


def test_pyplot_is_left_alone():
    import matplotlib.pyplot as plt

    plots(MEASURED)

    assert plt.get_fignums() == []
