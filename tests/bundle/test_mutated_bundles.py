"""Real files, changed at random, are read or refused by an error of ours, and by no other."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import resource
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.exceptions import MlflowException
from small_models import features, net

import mlflow_e2eai
from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.arrays import load_arrays
from mlflow_e2eai.artifacts.axes import parse_axes
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.files import from_json, read_sealed, seal, sha256_of
from mlflow_e2eai.artifacts.repairs import read_repaired
from mlflow_e2eai.bundle.digests import verify_digests
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import E2EAIError
from mlflow_e2eai.promotion.gates_file import GATES, parse_policy, policy_from
from mlflow_e2eai.report.page import html
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, plan_from, plan_text
from mlflow_e2eai.tracking import _mlflow

Read = Callable[[bytes, Path], object]


def _read_graph(content: bytes, folder: Path) -> object:
    path = folder / "m.onnx"
    path.write_bytes(content)
    model = read_repaired(path)
    graphs.to_graph(model)
    return graphs.interface(model)


def _read_manifest(content: bytes, folder: Path) -> object:
    """A manifest whose seal fits again, as whoever changes one can make it."""
    plain = content.decode("utf-8", "replace")
    (folder / "manifest.json").write_text(seal(plain), "utf-8", "surrogatepass")
    found = bundle.audit(folder, whole=False)
    return repr(found), html(found)


def _read_arrays(content: bytes, folder: Path) -> object:
    """An array in an archive whose checksum fits again."""
    return load_arrays(npz(folder / "x.npz", x=content))


def _read_archive(content: bytes, folder: Path) -> object:
    (folder / "x.npz").write_bytes(content)
    return load_arrays(folder / "x.npz")


def _read_mlmodel(content: bytes, folder: Path) -> object:
    (folder / "MLmodel").write_bytes(content)
    try:
        return _mlflow.get_flavor_configuration(folder, "mlflow_e2eai")
    except MlflowException as error:
        assert "does not have the" in str(error)  # noqa: PT017 - it is of another flavor
        return None


def _read_digests(content: bytes, folder: Path) -> object:
    (folder / "SHA256SUMS").write_bytes(content)
    return verify_digests(folder, sha256_of(folder / "SHA256SUMS"))


def _read_gates(content: bytes, folder: Path) -> object:
    return parse_policy(content.decode("utf-8", "replace"), "gates.yaml")


def _read_plan(content: bytes, folder: Path) -> object:
    from mlflow_e2eai.pipeline.options import parse_plan

    (folder / "plan.yaml").write_bytes(content)
    return [step.bound() for step in parse_plan(str(folder / "plan.yaml"))]


def _read_settings(content: bytes, folder: Path) -> object:
    return BuildSettings.parse(content.decode("utf-8", "replace"))


def _read_axes(content: bytes, folder: Path) -> object:
    return parse_axes(content.decode("utf-8", "replace"))


READERS: Mapping[str, Read] = {
    "graph": _read_graph,
    "manifest": _read_manifest,
    "array": _read_arrays,
    "archive": _read_archive,
    "MLmodel": _read_mlmodel,
    "SHA256SUMS": _read_digests,
    "gates": _read_gates,
    "plan": _read_plan,
    "build settings": _read_settings,
    "axes": _read_axes,
}


def originals(saved: Path) -> dict[str, bytes]:
    array = io.BytesIO()
    np.save(array, features())
    return {
        "graph": (saved / "bundle" / "model.onnx").read_bytes(),
        "manifest": read_sealed(saved / "bundle" / "manifest.json"),
        "array": array.getvalue(),
        "archive": (saved / "bundle" / "input_example.npz").read_bytes(),
        "MLmodel": (saved / "MLmodel").read_bytes(),
        "SHA256SUMS": (saved / "SHA256SUMS").read_bytes(),
        "gates": GATES.read_bytes(),
        "plan": plan_text(DEFAULT_PLAN).encode(),
        "build settings": b"optimization_level=5,threads=2,refit=yes,time_limit_s=90.5",
        "axes": b"x:0=N:1:8:64@1+8+32,y:1=T:2:4:6",
    }


TOKENS = [
    *(b"\0", b"\n", b"\xff\xfe", b"-1", b"1e999", b"NaN", b"null", b"true", b"{}", b"[]", b'""'),
    *(b"9" * 30, b"9" * 5000, b"1000000000000000", b"../../etc/passwd", b"/dev/zero", b"*a", b"&a"),
    *(
        b"[" * 300,
        b'{"a":' * 300,
        b"!!python/name:os.system",
        b"\x1b[2J",
        b"<<: *a",
        b"\xed\xa0\x80",
    ),
]


def mutated(content: bytes, chance: np.random.Generator) -> bytes:
    """A file with one to four changes: bits, bytes, runs cut, copied, moved or replaced."""
    data = bytearray(content)
    for _ in range(int(chance.integers(1, 5))):
        size = max(len(data), 1)
        at, end = sorted(int(each) for each in chance.integers(0, size, 2))
        end = min(end, at + 64)
        match int(chance.integers(7)):
            case 0 if data:
                data[at] ^= 1 << int(chance.integers(8))
            case 1 if data:
                data[at] = int(chance.integers(256))
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case 4:
                data[at:end] = TOKENS[int(chance.integers(len(TOKENS)))]
            case 5:
                data[at:at] = TOKENS[int(chance.integers(len(TOKENS)))]
            case _:
                del data[at:]
    return bytes(data)


def swapped(content: bytes, chance: np.random.Generator) -> bytes:
    """JSON or YAML with one value replaced by one of another kind or size, or moved."""
    tree = yaml.load(content, Loader=yaml.CSafeLoader)
    every = [*places(tree)]
    holder, key = every[int(chance.integers(len(every)))]
    if chance.random() < 0.3:
        move(holder, key, MOVES[int(chance.integers(len(MOVES)))])
    else:
        holder[key] = VALUES[int(chance.integers(len(VALUES)))]
    return as_json(tree)


VALUES = [
    *(None, True, -1, 0, 10**15, 10**400, 1e308, "", "\0", "../x", "x" * 300, [], {}, [[]]),
    *("\x1b[2J\n", "NaN", {"a": 1}, [1, "a"], "/etc/passwd", 0.5, "a\ud800"),
]

MOVES = ("left out", "renamed", "doubled")


def as_json(tree: object) -> bytes:
    return json.dumps(tree, default=str, indent=2).encode()  # a seal fits no other layout


def places(tree: Any, *, alike: bool = True) -> Iterator[tuple[Any, Any]]:
    """Each list or mapping with each of its keys; of lists, the first item alone if not alike."""
    for key in range(len(tree) if alike else min(1, len(tree))) if isinstance(tree, list) else tree:
        yield tree, key
        if isinstance(tree[key], list | dict):
            yield from places(tree[key], alike=alike)


def move(holder: Any, key: Any, how: str) -> None:
    """Leave an item out, or give it another name, or a second one."""
    value = copy.deepcopy(holder[key])
    if how != "doubled":
        del holder[key]
    if how != "left out":
        if isinstance(holder, list):
            holder.append(value)
        else:
            holder[f"{key} 2"] = value


def run(saved: Path, folder: Path, count: int, seed: int) -> list[str]:
    """Read mutants of all files; those that ended in another error, with the seed of each."""
    real = originals(saved)
    wrong = []
    structured = ("manifest", "MLmodel", "gates", "plan")
    for number in range(count):
        chance = np.random.default_rng((seed, number))
        kind = [*READERS][number % len(READERS)]
        is_swap = kind in structured and chance.random() < 0.5
        content = (swapped if is_swap else mutated)(real[kind], chance)
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            READERS[kind](content, place)
        except E2EAIError as error:
            if len(str(error).splitlines()) > 1:
                wrong.append(f"{kind} {seed, number}: several lines: {str(error)[:200]!r}")
        except Exception as error:  # noqa: BLE001 - any other is what this looks for
            wrong.append(f"{kind} {seed, number}: {type(error).__name__}: {str(error)[:200]}")
    return wrong


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_the_originals_are_read(saved, tmp_path):
    for kind, content in originals(saved).items():
        (tmp_path / kind).mkdir()
        if kind != "SHA256SUMS":  # the files of the list are not there
            READERS[kind](content, tmp_path / kind)


def test_mutants_of_each_kind_are_refused_and_of_most_kinds_some_are_read(saved, tmp_path):
    """So that neither is a reader asked for nothing, nor a file broken beyond what it reads."""
    real = originals(saved)
    for kind, read in READERS.items():
        ends = set()
        for number in range(200):
            content = mutated(real[kind], np.random.default_rng((7, number)))
            shutil.rmtree(tmp_path / "case", ignore_errors=True)
            (tmp_path / "case").mkdir()
            try:
                read(content, tmp_path / "case")
                ends.add("read")
            except E2EAIError:
                ends.add("refused")
            if len(ends) > 1:
                break
        assert "refused" in ends, kind
        # A list names files that are not there, and an archive has checksums.
        assert "read" in ends or kind in ("SHA256SUMS", "archive"), kind


def test_two_thousand_mutants_of_real_files_are_read_or_refused(saved, tmp_path):
    before = highest_memory()  # of all tests that ran in this process
    assert run(saved, tmp_path, 2_000, seed=1) == []
    assert highest_memory() - before < 2 << 20


def highest_memory():
    """The most memory that this process has held, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_a_hundred_thousand_mutants_of_real_files_are_read_or_refused(saved, tmp_path, part):
    assert run(saved, tmp_path, 10_000, seed=100 + part) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", MOVES)
def test_a_manifest_with_anything_moved_is_refused_or_has_a_page(how, saved, tmp_path):
    text = read_sealed(saved / "bundle" / "manifest.json")
    for number in range(len([*places(json.loads(text), alike=False)])):
        tree = json.loads(text)
        move(*[*places(tree, alike=False)][number], how)
        with contextlib.suppress(E2EAIError):
            _read_manifest(as_json(tree), tmp_path)


@pytest.mark.parametrize(
    ("path", "how", "sentence"),
    [
        (("graphs", 0), "left out", "has no graph; make the artifact again"),
        (("latency", "opt", "variants", 0, "rounds_ms", 0), "doubled", "but they take turns"),
        (("latency", "opt", "variants", 1, "rounds_ms", 0), "left out", "but they take turns"),
    ],
)
def test_a_manifest_whose_parts_do_not_fit_is_refused(path, how, sentence, saved, tmp_path):
    tree = json.loads(read_sealed(saved / "bundle" / "manifest.json"))
    tree["graphs"] = tree["graphs"][:1]
    *parents, key = path
    move(functools.reduce(lambda each, name: each[name], parents, tree), key, how)
    with pytest.raises(E2EAIError, match=sentence):
        _read_manifest(as_json(tree), tmp_path)


@pytest.mark.parametrize("how", MOVES)
@pytest.mark.parametrize("table", ["edits", "seconds", "operators_before", "operators_after"])
def test_a_step_or_operator_that_one_of_two_tables_lacks_leaves_its_cell_empty(
    table, how, saved, tmp_path
):
    tree = json.loads(read_sealed(saved / "bundle" / "manifest.json"))
    move(tree["surgery"][table], next(iter(tree["surgery"][table])), how)
    _read_manifest(as_json(tree), tmp_path)


def test_a_variant_without_rounds_has_no_ratio(saved, tmp_path):
    tree = json.loads(read_sealed(saved / "bundle" / "manifest.json"))
    timed = tree["latency"]["opt"]["variants"]
    for at in range(len(timed)):
        timed[at]["rounds_ms"] = []
        _read_manifest(as_json(tree), tmp_path)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_an_integer_beyond_64_bits_is_refused(number, saved, tmp_path):
    tree = json.loads(read_sealed(saved / "bundle" / "manifest.json"))
    for holder, key in [*places(tree, alike=False)]:
        if type(before := holder[key]) is not int:
            continue
        holder[key] = number
        with pytest.raises(E2EAIError, match=r"This is not a|written by"):
            _read_manifest(as_json(tree), tmp_path)
        holder[key] = before


# Files that are made to take much


def test_a_million_entries_of_evidence_are_refused_in_seconds(saved, tmp_path):
    content = json.loads(read_sealed(saved / "bundle" / "manifest.json"))
    text = json.dumps({**content, "evidence": "here"}, indent=2)
    entries = ", ".join(['{"variant": "v", "sha256": null, "measured": false}'] * 1_000_000)
    (tmp_path / "manifest.json").write_text(seal(text.replace('"here"', f"[{entries}]")))
    with pytest.raises(E2EAIError, match="has more than 32 MiB"):
        bundle.audit(tmp_path)


def test_two_graphs_of_one_path_are_refused(saved, tmp_path):
    place = Path(shutil.copytree(saved / "bundle", tmp_path / "bundle"))
    content = json.loads(read_sealed(place / "manifest.json"))
    first, second = content["graphs"]
    content["graphs"] = [first, {**second, "path": first["path"]}]
    plain = json.dumps(content, indent=2)
    from_json(Manifest, plain)
    (place / "manifest.json").write_text(seal(plain))
    for whole in (True, False):
        with pytest.raises(E2EAIError, match=r"names 'model\.onnx' twice"):
            bundle.audit(place, whole=whole)


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


ARRAYS = {
    "10^12 numbers": header("(1000000000000,)"),
    "a size below zero": header("(-1,)"),
    "sizes beyond 64 bits": header("(99999999999999999999999,)"),
    "a shape of words": header("('a',)"),
    "an expression": header("__import__('os').getcwd()"),
    "a deep shape": header("(" * 2000),
    "objects": header("(1,)", "|O"),
    "an unknown dtype": header("(1,)", "zz"),
    "no header": b"\x93NUMPY\x01\x00",
    "no array": b"text",
    "a packed file of zeros": header("(1,)") + bytes(1 << 20) * 260,
}


@pytest.mark.parametrize("what", ARRAYS)
def test_an_npz_file_that_claims_or_unpacks_to_too_much_is_refused(what, tmp_path):
    path = npz(tmp_path / "x.npz", x=ARRAYS[what])
    with pytest.raises(E2EAIError, match=r"Cannot read x\.npz"):
        load_arrays(path)


def test_a_pipe_in_place_of_arrays_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(E2EAIError, match="it is no regular file"):
        load_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("highest", [10**9, 10**15])
def test_an_axis_of_10_to_the_15_is_refused_before_a_sample_is_made(highest, tmp_path):
    axes = {"x": {0: mlflow_e2eai.Axis("N", min=1, opt=8, max=highest)}}
    with pytest.raises(
        E2EAIError, match=r"GB, and 4\.3 at most are made; lower the max of its axes"
    ):
        mlflow_e2eai.save_model(
            net(), tmp_path / "m", input_example={"x": features()}, dynamic_axes=axes
        )


@pytest.mark.parametrize(
    "data", [{"gates": 10**400}, {"gates": [{"metric": "a", "at_most": 10**400}]}]
)
def test_parsed_gates_of_any_number_are_refused(data):
    with pytest.raises(E2EAIError):
        policy_from(data)


@pytest.mark.parametrize("plan", [[{"a": {}}], [5], [None], [[[]]], {"a": 1}, "x" * 300])
def test_a_plan_of_any_shape_is_refused(plan):
    with pytest.raises(E2EAIError):
        [step.bound() for step in plan_from(plan)]
