"""BENCHMARKS.md: every program here writes a section of its own, and leaves the others alone."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "BENCHMARKS.md"
ORDER = (
    "gpu",
    "whole",
    "cpu",
    "rerun",
    "models",
    "weights",
    "large",
    "faults",
    "fleet",
    "registry",
    "many",
    "aa",
    "parity",
)

HEAD = """# Benchmarks

`make bench-gpu` writes the section on engines, where there is one, `make bench-whole` that on the
whole call, `make bench` what else a CPU shows, and `make bench-slow` the rest. Times on a shared
machine are noisy: what is compared was measured in one run and in turns, and the ratios are what to
look at.
"""


def here() -> str:
    """This machine, as one without a GPU."""
    what = f"{platform.machine()}, {os.cpu_count()} cores, no GPU"
    return f"{what}, Python {platform.python_version()}, versions of constraints.txt"


def write(program: str, title: str, text: str, *, machine: str | None = None) -> None:
    """Put a program's section in its place.

    Args:
        program: Its name, one of `ORDER`.
        title: The section's heading.
        text: What stands below, as Markdown.
        machine: What was measured on; by default the CPU of this machine.
    """
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    parts = re.split(r"^<!-- (\w+)\.py -->\n", page, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    sections[program] = f"## {title}\n\nMachine: {machine or here()}.\n\n{text}"
    written = [HEAD] + [
        f"<!-- {name}.py -->\n\n{sections[name].strip()}\n" for name in ORDER if name in sections
    ]
    PAGE.write_text("\n".join(written), encoding="utf-8")
