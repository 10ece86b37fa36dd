"""A real browser for tests, and what it says of a page."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Nothing but the page is asked for: no updates, no accounts. Root needs the first one.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@contextmanager
def chromium() -> Iterator:
    """Chromium without a window, for the block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Heard:
    """What a page says on its console, and what it asks of the network."""

    def __init__(self, page) -> None:
        self.said: list[tuple[str, str]] = []
        self.asked: list[str] = []
        page.on(
            "console", lambda message: self.said.append((message.location["url"], message.text))
        )
        page.on("pageerror", lambda error: self.said.append((page.url, str(error))))
        page.on("request", lambda request: self.asked.append(request.url))
