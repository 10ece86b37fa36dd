"""The report's page in a real browser, alone."""

import io

import pytest
from browser import Heard, chromium, needs_chromium
from example_manifest import CPU, ENGINE, HALF, OTHER, RAW, REJECTED, TORCH, shown
from hostile_manifest import HOSTILE, hostile_page

from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.report.page import html, surgery_html

pytestmark = [pytest.mark.system, needs_chromium]

ORIGIN = Origin(
    name="digits",
    version="3",
    model_id="m-1",
    run_id="r1",
    experiment_id="7",
    tracking_uri="http://127.0.0.1:9",
)
PRINTED_PX = 688
"""Width of A4 between margins of 14 mm, at 96 pixels an inch."""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Address of each page."""
    folder = tmp_path_factory.mktemp("pages")
    pages = {
        "report": html(shown(), REJECTED, origin=ORIGIN),
        "surgery": surgery_html(shown().surgery),
        "many": html(shown(many=500), REJECTED, origin=ORIGIN),
        "hostile": hostile_page(HOSTILE),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in pages}


@pytest.fixture
def page(browser):
    with browser.new_page() as found:
        yield found


@pytest.mark.parametrize("name", ["report", "surgery", "many", "hostile"])
def test_a_page_is_silent_and_asks_for_nothing_but_itself(name, page, files):
    heard = Heard(page)
    page.goto(files[name], wait_until="networkidle")

    assert heard.said == []
    assert heard.asked == [files[name]]
    assert page.title() != "owned"


def test_the_decision_comes_first_then_what_is_doubtful_then_the_sections(page, files):
    page.goto(files["report"])

    assert page.locator(".answer").inner_text() == "Rejected"
    assert page.locator("h2").all_inner_texts() == [
        "Caveats",
        "Variants",
        "Findings",
        "Step by step",
        "Latency",
        "Error and latency",
        "Serving",
        "Parity",
        "Surgery",
        "Interface",
        "Files and lineage",
        "Environment",
        "How to reproduce",
    ]
    heights = [box["y"] for box in (h.bounding_box() for h in page.locator("h2").all())]
    assert heights == sorted(heights)


def test_the_decision_and_the_doubts_are_seen_without_scrolling(page, files):
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(files["report"])

    for part in (".answer", ".doubts", ".facts"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= 720, part


@pytest.mark.parametrize("name", ["report", "surgery"])
def test_tab_reaches_every_control_and_shows_where_it_is(name, page, files):
    page.goto(files[name])
    wanted = page.evaluate(
        """() => [...document.querySelectorAll(
             'a[href], input, button, summary, [tabindex="0"]')].map((one, at) => one.id_ = at)"""
    )
    reached, outlines = [], set()
    for _ in wanted:
        page.keyboard.press("Tab")
        at, style, width = page.evaluate(
            """() => {
                 const style = getComputedStyle(document.activeElement);
                 return [document.activeElement.id_, style.outlineStyle, style.outlineWidth];
               }"""
        )
        reached.append(at)
        outlines.add((style, width))

    assert reached == wanted
    assert outlines == {("solid", "3px")}


def shown_variants(page, table: str) -> list[str]:
    """The variants of a table that can be seen, from top to bottom."""
    names = page.locator(f"table:has(#{table}) tbody:visible").all()
    return [body.get_attribute("data-variant") for body in names]


def test_the_filter_narrows_every_table(page, files):
    page.goto(files["report"])
    page.get_by_label("Show variants with").fill(" FP16 ")

    assert shown_variants(page, "variants-table") == [HALF, ENGINE, OTHER]
    for table in ("steps-table", "latency-table", "parity-table", "loads-table"):
        assert shown_variants(page, table) == [HALF, ENGINE]
    assert page.locator("#filter-count").inner_text() == "3 of 6 shown"

    page.get_by_label("Show variants with").fill("")
    assert len(shown_variants(page, "variants-table")) == 6


def test_a_heading_sorts_its_table_by_keyboard_and_the_unmeasured_stay_last(page, files):
    page.goto(files["report"])
    median = page.get_by_role("button", name="Median at 8, ms")
    head = page.get_by_role("columnheader", name="Median at 8, ms")

    median.press("Enter")
    assert shown_variants(page, "variants-table") == [ENGINE, CPU, RAW, HALF, TORCH, OTHER]
    assert head.get_attribute("aria-sort") == "ascending"

    median.press("Enter")
    assert shown_variants(page, "variants-table") == [TORCH, HALF, RAW, CPU, ENGINE, OTHER]
    assert head.get_attribute("aria-sort") == "descending"

    page.get_by_role("button", name="Variant").first.press("Space")
    assert shown_variants(page, "variants-table") == sorted([ENGINE, OTHER, CPU, HALF, RAW, TORCH])
    assert head.get_attribute("aria-sort") is None


def test_with_500_variants_filter_and_sort_still_serve(page, files):
    page.goto(files["many"])
    page.get_by_role("button", name="Largest error").first.click()
    names = page.locator("table:has(#variants-table) tbody")

    assert names.count() == 506
    assert names.first.get_attribute("data-variant") == TORCH
    assert names.last.get_attribute("data-variant") == OTHER

    page.get_by_label("Show variants with").fill("cpu-499")
    assert shown_variants(page, "variants-table") == ["onnxruntime-cpu-499/fp32"]
    assert len(page.content()) < 5e6


def violations(page) -> list[str]:
    """What axe-core finds against WCAG and its own good practice."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


@pytest.mark.parametrize("name", ["report", "surgery"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(name, scheme, width, page, files):
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.goto(files[name])
    page.evaluate("for (const one of document.querySelectorAll('.collapsed')) one.open = true")

    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.fixture
def phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    return page


def test_on_a_phone_the_gates_are_read_without_scrolling_sideways(phone, files):
    phone.goto(files["report"])
    region = phone.locator(".scroll:has(#gates)")

    assert region.evaluate("one => one.scrollWidth - one.clientWidth") == 0
    assert phone.get_by_text("nobody measured").first.is_visible()


def test_on_a_phone_latency_and_ratio_of_each_variant_are_read_without_scrolling_sideways(
    phone, files
):
    phone.goto(files["report"])
    head = phone.locator("table:has(#variants-table) thead")

    for column in ("Variant", "Outcome", "Median at 8, ms", "Ratio to reference"):
        box = head.get_by_role("button", name=column).bounding_box()
        assert box["x"] + box["width"] <= 390, column


def open_sections(page) -> list[str]:
    """Keys of the sections whose contents can be seen."""
    return page.evaluate(
        """() => [...document.querySelectorAll('main > section')]
             .filter((one) => one.querySelector('.collapsed')?.open ?? true).map((one) => one.id)"""
    )


def test_on_a_phone_only_the_result_is_open_until_a_link_is_followed(phone, files):
    phone.goto(files["report"])
    assert open_sections(phone) == ["variants", "findings"]

    phone.get_by_role("link", name="Parity").click()
    phone.locator("#parity-table").wait_for(state="visible")
    assert open_sections(phone) == ["variants", "findings", "parity"]


def test_on_a_phone_an_address_of_a_section_opens_it(phone, files):
    phone.goto(f"{files['report']}#serving")

    assert open_sections(phone) == ["variants", "findings", "serving"]


def test_on_a_phone_printing_opens_all_sections(phone, files):
    phone.goto(files["report"])
    phone.evaluate("dispatchEvent(new Event('beforeprint'))")

    assert phone.locator(".collapsed").count() > 0
    assert phone.locator(".collapsed:not([open])").count() == 0


def test_on_a_wide_screen_every_section_is_open(page, files):
    page.goto(files["report"])

    assert page.locator(".collapsed").count() == 0


def test_a_short_list_of_findings_is_shown_whole(phone, files):
    phone.goto(files["report"])
    regions = phone.locator(".scroll:has(.findings)").all()

    assert regions
    for region in regions:
        assert region.evaluate("one => one.scrollHeight - one.clientHeight") == 0


def lightness(picture: bytes) -> int:
    """Of the upper left corner of a picture, 0 to 255."""
    from PIL import Image

    return Image.open(io.BytesIO(picture)).convert("L").getpixel((12, 12))


@pytest.mark.parametrize(("scheme", "darkest", "lightest"), [("light", 250, 255), ("dark", 0, 40)])
def test_a_plot_is_as_light_or_dark_as_its_page(scheme, darkest, lightest, page, files):
    page.emulate_media(color_scheme=scheme)
    page.goto(files["report"])

    assert darkest <= lightness(page.locator(".chart").first.screenshot()) <= lightest


def test_the_dark_page_is_dark(page, files):
    shades = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(files["report"])
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades.append(int(colour.removeprefix("rgb(").partition(",")[0]))

    light, dark = shades
    assert light > 240
    assert dark < 40


@pytest.mark.parametrize("name", ["report", "surgery"])
def test_no_table_is_cut_off_in_print(name, page, files):
    page.set_viewport_size({"width": PRINTED_PX, "height": 1000})
    page.emulate_media(media="print", color_scheme="dark")
    page.goto(files[name])
    cut = page.evaluate(
        """width => [...document.querySelectorAll('table, pre, .chart, .graph, .findings')]
             .filter((one) => one.getBoundingClientRect().right > width + 1)
             .map((one) => [one.className, one.getBoundingClientRect().right])""",
        PRINTED_PX,
    )

    assert cut == []
    assert page.evaluate("document.documentElement.scrollWidth") == PRINTED_PX
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav, #filter-line").filter(visible=True).count()
    assert page.pdf(format="A4").startswith(b"%PDF-")


def test_a_folded_stretch_of_the_graph_opens_by_keyboard(page, files):
    page.goto(files["surgery"])
    row = page.get_by_text("/stage.3/layer.0/Conv", exact=True)

    assert not row.is_visible()
    page.locator("summary").first.press("Enter")
    assert row.is_visible()


def test_a_screen_reader_hears_what_surgery_did_and_who_reads_whom(page, files):
    page.goto(files["surgery"])
    heard = page.locator("ol.graph").aria_snapshot()
    words = [word for word in heard.split() if word not in ("-", "text:", "code:", "strong:")]

    assert '"22" Relu removed /stage.5/layer.1/Relu reads 21' in " ".join(words)
