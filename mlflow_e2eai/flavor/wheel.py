"""A wheel of this package, for models that are logged from a checkout.

No index has what runs here then, so that a model carries it. It is written here and not by pip:
that would need the checkout, its build backend and the network, and gives another digest each time.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mlflow_e2eai._version import __version__
from mlflow_e2eai.errors import without_secrets

FOLDER = "packages"
"""Folder of a model with the wheel."""

_NAME = "mlflow_e2eai"
_WHEEL = f"Wheel-Version: 1.0\nGenerator: {_NAME}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time of every file, so that the same code has the same digest: the first that zip knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where this package was installed from, by pip's record of it (PEP 610, direct_url.json).

    Attributes:
        requirement: The requirement that names it.
        local: The folder or file that it came from; None where that is an index or a repository.
    """

    requirement: str
    local: str | None = None


def origin() -> Origin:
    """Find where this package was installed from."""
    pinned = f"{_NAME}=={__version__}"
    try:
        recorded = distribution(_NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return Origin(requirement=pinned)  # nothing says what it needs: no wheel can be made
    found = json.loads(recorded) if recorded else {}
    if (vcs := found.get("vcs_info")) is not None:
        url = without_secrets(found["url"]).replace("***@", "")
        return Origin(requirement=f"{_NAME} @ {vcs['vcs']}+{url}@{vcs['commit_id']}")
    url = without_secrets(found.get("url", "")).replace("***@", "")
    if url.startswith(("http:", "https:")):
        return Origin(requirement=f"{_NAME} @ {url}")
    return Origin(requirement=pinned, local=url if url.startswith("file:") else None)


def write_wheel(folder: Path) -> str:
    """Write a wheel of the code that runs into a folder, which is made.

    Returns:
        The sha256 digest of the wheel.
    """
    content = _wheel()
    folder.mkdir()
    (folder / f"{_NAME}-{__version__}-py3-none-any.whl").write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@functools.cache
def _wheel() -> bytes:
    package = Path(__file__).parents[1]
    files = {
        f"{_NAME}/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"{_NAME}-{__version__}.dist-info"
    installed = distribution(_NAME)
    for name in ("METADATA", "entry_points.txt"):
        files[f"{info}/{name}"] = (installed.read_text(name) or "").encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    rows = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
