"""How the HTML page is built, and that nothing in it can act."""

import dataclasses
import itertools
import re
import time

import pytest
from example_manifest import shown
from hostile_manifest import HOSTILE, hostile, hostile_page
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from parsed_page import Page
from small_manifest import CPU, HALF, ORIGIN, REJECTED, TORCH, full, manifest, timed

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.precision.ranges import Fp32Node
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.report.page import html, precision_html, surgery_html
from mlflow_e2eai.report.sections import measurements


def refused(text: str) -> PrecisionReport:
    node = Fp32Node(node=text, operator=text, reason="overflow", value=text, magnitude=1e38)
    return PrecisionReport(precision="fp16", nodes=1, samples=1, kept=(node,), refused=text)


def pages() -> dict[str, str]:
    return {
        "full": html(full(), REJECTED, origin=ORIGIN),
        "shown": html(shown(), REJECTED, origin=ORIGIN),
        "surgery": surgery_html(shown().surgery),
        "precision": precision_html(refused(HOSTILE)),
        "bare": html(manifest()),
        "hostile": html(hostile(HOSTILE), origin=Origin(name=HOSTILE, version=HOSTILE)),
        "machines": html(elsewhere_too(shown(), HOSTILE), REJECTED, origin=ORIGIN),
    }


def elsewhere_too(found: Manifest, gpu: str) -> Manifest:
    """Another machine, twice, found the same."""
    there = MachineEvidence(
        environment={"gpu": gpu}, evidence=found.evidence, latency=found.latency
    )
    return dataclasses.replace(found, elsewhere=(there, there))


@pytest.fixture(params=["full", "shown", "bare", "hostile", "machines"])
def page(request):
    return Page(pages()[request.param])


def test_ids_are_unique_and_what_names_them_finds_them(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    named = [
        name
        for _, attributes in page.tags
        for key in ("aria-labelledby", "aria-describedby", "for")
        for name in (attributes.get(key) or "").split()
    ]
    named += [
        attributes["href"].removeprefix("#")
        for attributes in page.all("a", "use")
        if attributes["href"].startswith("#")
    ]

    assert len(set(ids)) == len(ids)
    assert set(named) <= set(ids)


def test_headings_go_down_one_step_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]

    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))


def test_there_are_landmarks_and_a_language(page):
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(name)) for name in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert all("aria-label" in s or "aria-labelledby" in s for s in page.all("nav", "section"))


def test_pictures_have_a_name_or_are_hidden_because_words_say_the_same(page):
    assert all(picture.get("aria-hidden") == "true" for picture in page.all("svg"))
    assert all(picture["alt"] for picture in page.all("img"))


def test_tables_have_captions_and_headings_have_a_scope(page):
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in heading for heading in page.all("th"))
    regions = [a for a in page.all("div") if a.get("role") == "region"]
    assert all(region["tabindex"] == "0" for region in regions)


def test_what_takes_focus_to_scroll_has_a_name(page):
    named = {"aria-labelledby", "aria-label"}
    assert all(named & set(a) for a in page.all("div") if "tabindex" in a)


@pytest.mark.parametrize("found", [full(), shown()], ids=["full", "shown"])
def test_every_row_of_a_table_has_as_many_cells_as_its_head(found):
    tables = re.findall(r"<table.*?</table>", html(found, REJECTED, origin=ORIGIN), re.DOTALL)

    assert len(tables) > 6
    for text in tables:
        head = len(re.findall(r'scope="col"', text))
        below = 0  # rows in which a cell from above takes a place
        for row in re.findall(r"<tr>.*?</tr>", text.partition("</thead>")[2], re.DOTALL):
            wide = sum(int(span) - 1 for span in re.findall(r'colspan="(\d+)"', row))
            assert len(re.findall(r"<t[dh]", row)) + wide == head - (below > 0), row
            tall = re.search(r'rowspan="(\d+)"', row)
            below = int(tall[1]) - 1 if tall else max(below - 1, 0)


def test_nothing_is_asked_of_the_network():
    for name, text in pages().items():
        page = Page(text)
        assert not page.all("link", "iframe", "object", "embed", "base", "form"), name
        sources = [a["src"] for a in page.all("img")]
        assert len(sources) == sum("src" in a or "srcset" in a for _, a in page.tags), name
        assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
        assert "@import" not in text
        assert "url(" not in text
        (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
        assert policy.startswith("default-src 'none'; img-src data:;")
        assert "unsafe" not in policy


def test_500_variants_are_a_page_of_a_few_megabytes_in_ten_times_that_of_50():
    def taken_s(number):
        names = [f"onnxruntime-cpu-{at:03d}/fp32" for at in range(number)]
        entries = [
            dataclasses.replace(CPU if at % 7 else HALF, variant=name)
            for at, name in enumerate(names)
        ]
        times = {
            name: [1 + (at * turn % 13) / 13 for turn in range(20)] for at, name in enumerate(names)
        }
        times["torch/fp32"] = [2.0] * 20
        sizes = (("opt", 8), ("min", 1), ("max", 64))
        latency = {label: timed(times, items) for label, items in sizes}
        found = manifest(TORCH, *entries, latency=latency)
        started = time.process_time()
        text = html(found)
        ended = time.process_time()
        assert len(text.encode()) < 1e6 + 4e3 * number
        assert all(name in text for name in names)
        return ended - started

    html(full())  # with which matplotlib and the templates are loaded
    assert taken_s(500) < 20 * taken_s(50)  # in the square of their number it were 100 times


# Hostile names


@pytest.fixture(scope="module")
def undrawn():
    """No pictures, which take most of a page's time and are no part of its structure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "latency_picture", lambda _: None)
        patch.setattr(measurements, "pareto_picture", lambda _: None)
        yield


def shape(text: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(attributes)) for tag, attributes in Page(text).tags]


@pytest.mark.usefixtures("undrawn")
@given(
    name=st.one_of(
        st.sampled_from(
            [HOSTILE, "javascript:alert(1)", "'\"", "&lt;", "]]>", "<!--", "\ud800\x00"]
        ),
        st.text(min_size=1, max_size=40),
    )
)
@settings(max_examples=40, deadline=None)
def test_no_name_changes_what_the_page_is_built_of(name):
    # A variant's name ends in its precision, which has its own line; the raw graph is not shipped.
    assume(not name.endswith(("/fp32", "/raw")))
    text = hostile_page(name)

    assert shape(text) == shape(hostile_page("x"))
    assert "\x00" not in text
    text.encode("utf-8")


def test_a_name_that_turns_the_direction_of_writing_does_not():
    assert "\u202e" not in html(hostile("\u202egnp.exe"))


def test_a_frame_that_may_only_run_scripts_is_what_the_page_needs():
    """MLflow shows HTML artifacts in such a frame: no storage, no forms, no navigation."""
    script = re.search(r"<script>(.*?)</script>", html(full()), re.DOTALL)[1]

    assert not re.search(r"localStorage|sessionStorage|cookie|location|fetch|eval", script)
