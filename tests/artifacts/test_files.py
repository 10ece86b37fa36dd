"""Files are read whole, written whole, and are the ones that were recorded."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from small_manifest import full

from mlflow_e2eai.artifacts import files
from mlflow_e2eai.artifacts.files import (
    atomic_write,
    from_json,
    open_file,
    read_bytes,
    read_sealed,
    require_inside,
    seal,
    sha256_of,
    to_json,
    verify,
)
from mlflow_e2eai.artifacts.values import WeightFile
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import ArtifactError


@pytest.mark.parametrize("place", [0, 1, 2, 31, 63])
def test_every_character_of_a_digest_counts(tmp_path, place):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    other = "0" if digest[place] != "0" else "1"

    verify(path, digest)
    with pytest.raises(ArtifactError, match="has changed since it was made"):
        verify(path, digest[:place] + other + digest[place + 1 :])


def test_whoever_has_the_old_file_open_goes_on_with_it(tmp_path):
    out, linked = tmp_path / "out", tmp_path / "linked"
    out.write_bytes(b"old")
    os.link(out, linked)
    with atomic_write(out) as temporary:
        temporary.write_bytes(b"new")

    assert (out.read_bytes(), linked.read_bytes()) == (b"new", b"old")


def test_a_seal_is_of_the_text(tmp_path):
    path, value = tmp_path / "file.json", WeightFile(path=tmp_path, sha256="", size_bytes=100)
    sealed = seal(to_json(value))
    path.write_text(sealed)

    assert from_json(WeightFile, read_sealed(path)) == value
    path.write_text(sealed.replace("100", "101"))
    with pytest.raises(ArtifactError, match="has changed since it was made"):
        read_sealed(path)
    path.write_text(to_json(value))
    with pytest.raises(ArtifactError, match="does not end with its own digest"):
        read_sealed(path)


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/a", "C:\\a", "\\\\host\\a", "a\nb", "a\0"])
def test_a_name_leads_to_nothing_outside_of_its_folder(name):
    require_inside("a/b.onnx", "It")
    with pytest.raises(ArtifactError, match="do not trust it"):
        require_inside(name, "It")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        open_file(tmp_path / "pipe")


def test_a_file_of_text_has_a_largest_length(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TEXT_BYTES", 1000)
    (tmp_path / "file").write_bytes(bytes(1000))
    assert len(read_bytes(tmp_path / "file")) == 1000
    (tmp_path / "file").write_bytes(bytes(1001))
    with pytest.raises(ArtifactError, match="which no such file has"):
        read_bytes(tmp_path / "file")


def test_a_number_is_no_text():
    text = '{"path": "a", "sha256": "", "size_bytes": "1"}'
    with pytest.raises(ArtifactError, match="at size_bytes"):
        from_json(WeightFile, text)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("graphs", [1] * 1000), ("environment", {str(at): 1 for at in range(1000)})],
)
def test_of_a_thousand_wrong_entries_the_first_is_named_and_no_other_is_kept(field, wrong):
    text = json.dumps({**json.loads(to_json(full())), field: wrong})
    with pytest.raises(ArtifactError, match=f"at {field}.0, ") as raised:
        from_json(Manifest, text)
    assert raised.value.__cause__.error_count() == 1


def test_the_digest_is_that_of_the_content(tmp_path):
    content = os.urandom(3_000_001)  # more than is read at once
    (tmp_path / "file").write_bytes(content)

    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["absent", "."])
def test_what_is_no_file_has_no_digest(tmp_path, name):
    with pytest.raises(ArtifactError, match="Cannot read"):
        sha256_of(tmp_path / name)


def test_an_unchanged_file_is_verified(tmp_path):
    (tmp_path / "file").write_bytes(b"engine")

    verify(tmp_path / "file", hashlib.sha256(b"engine").hexdigest())


@pytest.mark.parametrize("place", [0, 500, -1])
def test_one_flipped_bit_is_noticed(tmp_path, place):
    content = bytearray(1000)
    digest = hashlib.sha256(content).hexdigest()
    content[place] ^= 1
    (tmp_path / "file").write_bytes(content)

    with pytest.raises(ArtifactError, match=f"{digest[:12]}… was recorded"):
        verify(tmp_path / "file", digest)


def test_a_missing_file_is_not_verified(tmp_path):
    with pytest.raises(ArtifactError, match="Cannot read"):
        verify(tmp_path / "file", "")


def test_a_file_appears_only_when_its_block_has_ended(tmp_path):
    out = tmp_path / "deep" / "er" / "out.bin"
    with atomic_write(out) as temporary:
        temporary.write_bytes(b"new")
        assert not out.exists()
        assert temporary.parent == out.parent  # a move between file systems is not atomic

    assert out.read_bytes() == b"new"
    assert list(out.parent.iterdir()) == [out]


def test_the_old_file_is_there_until_the_new_one_is(tmp_path):
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")
    with atomic_write(out) as temporary:
        temporary.write_bytes(b"new")
        assert out.read_bytes() == b"old"

    assert out.read_bytes() == b"new"


def write_half(out: Path, error: type[BaseException]) -> None:
    with atomic_write(out) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(error):
        write_half(tmp_path / "out.bin", error)

    assert list(tmp_path.iterdir()) == []


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")
    with pytest.raises(KeyError):
        write_half(out, KeyError)

    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with atomic_write(tmp_path / "out.bin") as one, atomic_write(tmp_path / "out.bin") as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")

    assert (tmp_path / "out.bin").read_bytes() == b"one"  # whose block ended last


def test_a_written_file_is_for_everyone_to_read(tmp_path):
    with atomic_write(tmp_path / "out.bin"):
        pass

    assert (tmp_path / "out.bin").stat().st_mode & 0o777 == 0o644
