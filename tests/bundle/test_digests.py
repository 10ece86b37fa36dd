"""The list of a folder's digests: whatever is not as it was listed is named."""

from __future__ import annotations

import pytest

from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.bundle.digests import DIGESTS, verify_digests, write_digests
from mlflow_e2eai.errors import ArtifactError, InvalidInputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one file").write_text("1")
    (tmp_path / "two").write_text("")
    return tmp_path


def test_a_folder_is_as_it_was_listed(folder):
    verify_digests(folder, write_digests(folder))


def test_a_file_that_may_be_there_is_not_complained_of(folder):
    digest = write_digests(folder)
    (folder / "MLmodel").write_text("")
    verify_digests(folder, digest, unlisted=("MLmodel",))


def test_a_link_is_a_file_of_its_own(folder):
    digest = write_digests(folder)
    (folder / "link").symlink_to(folder / "a")
    with pytest.raises(ArtifactError, match="link was not in the model"):
        verify_digests(folder, digest)


@pytest.mark.parametrize("line", ["0" * 64 + "  ../two", "0" * 64 + "  /etc/passwd", "x  two", ""])
def test_a_line_that_names_no_file_inside_is_refused(folder, line):
    write_digests(folder)
    (folder / DIGESTS).write_text(f"{line}\n")
    with pytest.raises(ArtifactError, match=r"not a digest and a file name|outside the model"):
        verify_digests(folder, sha256_of(folder / DIGESTS))


def test_a_name_that_the_list_cannot_hold_is_refused(folder):
    (folder / "a\nb").write_text("")
    with pytest.raises(InvalidInputError, match="line break"):
        write_digests(folder)
