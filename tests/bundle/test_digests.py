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


NAMES = ["a\nb", "a\rb", "a\tb", "a\u2028b", "a\x85b", "a\\b", "C:b", "a\u202eb", "a\udc80b"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_the_list_cannot_hold_is_refused_before_it_is_written(folder, name):
    (folder / name).write_text("")
    with pytest.raises(InvalidInputError, match="a line break") as raised:
        write_digests(folder)
    assert raised.value.args[0].isprintable()
    assert not (folder / DIGESTS).exists()


@pytest.mark.parametrize("name", ["one two", "x' \"y", "ünï", "a;b", "0" * 64 + "  x"])
def test_a_folder_with_an_odd_name_that_can_be_listed_is_as_it_was_listed(folder, name):
    (folder / name).write_text("")
    verify_digests(folder, write_digests(folder))


@pytest.mark.parametrize("name", ["two", "a"])
def test_a_listed_file_or_folder_that_is_a_link_is_refused_though_its_content_is_the_same(
    folder, tmp_path_factory, name
):
    digest = write_digests(folder)
    outside = tmp_path_factory.mktemp("outside") / "it"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"two in .* is a symbolic link|is missing"):
        verify_digests(folder, digest)
