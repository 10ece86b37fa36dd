"""BENCHMARKS.md: every program here writes a section of its own, and leaves the others alone."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "BENCHMARKS.md"
ORDER = ("cpu", "models", "faults", "fleet", "aa", "parity")

HEAD = """# Benchmarks

`make bench` writes the first three sections, `make bench-slow` the others. Times on a shared
machine are noisy: what is compared was measured in one run and in turns, and the ratios are what to
look at. No figure here comes from a GPU: engines and CUDA are not measured yet.
"""


def machine() -> str:
    """What was measured on."""
    what = f"{platform.machine()}, {os.cpu_count()} cores, no GPU"
    return f"{what}, Python {platform.python_version()}, versions of constraints.txt"


def write(program: str, title: str, text: str) -> None:
    """Put a program's section in its place.

    Args:
        program: Its name, one of `ORDER`.
        title: The section's heading.
        text: What stands below, as Markdown.
    """
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    parts = re.split(r"^<!-- (\w+)\.py -->\n", page, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    sections[program] = f"## {title}\n\nMachine: {machine()}.\n\n{text}"
    written = [HEAD] + [
        f"<!-- {name}.py -->\n\n{sections[name].strip()}\n" for name in ORDER if name in sections
    ]
    PAGE.write_text("\n".join(written), encoding="utf-8")
