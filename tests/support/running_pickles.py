"""Files of PyTorch's that run a command as they are loaded, one for each way to hide it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from small_models import features, net


class Command:
    """Pickled as the call of a function of the operating system."""

    def __init__(self, mark: Path) -> None:
        self.words = f"touch {mark}"

    def __reduce__(self):
        return os.system, (self.words,)


def program(path: Path) -> Path:
    """A harmless .pt2 file."""
    torch.export.save(torch.export.export(net(), (torch.from_numpy(features()),)), path)
    return path


def edited(path: Path, edit: Callable[[dict[str, bytes]], None]) -> Path:
    """Write an archive again, with the contents of its files, by the end of their names, edited."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    edit(files)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(f"{root}/{name}", content)
    return path


def _saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _as_json(files: dict[str, bytes], name: str, edit: Callable[[dict], None]) -> None:
    content = json.loads(files[name])
    edit(content)
    files[name] = json.dumps(content).encode()


def _by_example(folder: Path, mark: Path) -> Path:
    def edit(files):
        files["data/sample_inputs/model.pt"] = _saved(((Command(mark),), {}))

    return edited(program(folder / "example.pt2"), edit)


def _by_weight(folder: Path, mark: Path) -> Path:
    def edit(files):
        def pickled(config):
            entry = next(iter(config["config"].values()))
            entry["use_pickle"] = True
            files[f"data/weights/{entry['path_name']}"] = _saved(Command(mark))

        _as_json(files, "data/weights/model_weights_config.json", pickled)

    return edited(program(folder / "weight.pt2"), edit)


def _by_guard(folder: Path, mark: Path) -> Path:
    code = f"__import__('os').system('touch {mark}') == 0"
    return edited(
        program(folder / "guard.pt2"),
        lambda files: _as_json(
            files, "models/model.json", lambda model: model.update(guards_code=[code])
        ),
    )


def _by_expression(folder: Path, mark: Path) -> Path:
    sizes = {0: torch.export.Dim("batch", min=2, max=16)}
    whole = torch.export.export(net(), (torch.from_numpy(features()),), dynamic_shapes=(sizes,))
    path = folder / "expression.pt2"
    torch.export.save(whole, path)
    code = f"__import__('os').system('touch {mark}')"

    def edit(files):
        text = files["models/model.json"].decode()
        one = next(p for p in text.split('"expr_str": "')[1:]).partition('"')[0]
        files["models/model.json"] = text.replace(f'"{one}"', f'"{code}"').encode()

    return edited(path, edit)


def _by_library(folder: Path, mark: Path) -> Path:
    def edit(files):
        files["data/aotinductor/model/model.so"] = b"\x7fELF" + str(mark).encode()

    return edited(program(folder / "library.pt2"), edit)


def _by_torch_save(folder: Path, mark: Path) -> Path:
    path = folder / "module.pth"
    torch.save(Command(mark), path)
    return path


def _by_old_torch_save(folder: Path, mark: Path) -> Path:
    path = folder / "old.pth"
    torch.save({"a": torch.ones(2), "b": Command(mark)}, path, _use_new_zipfile_serialization=False)
    return path


def _by_new_protocol(folder: Path, mark: Path) -> Path:
    path = folder / "new.pth"
    path.write_bytes(pickle.dumps(Command(mark), protocol=5))
    return path


def _behind_an_archive(folder: Path, mark: Path) -> Path:
    """A pickle with an archive of TorchScript after it, which another reader finds first."""
    path = folder / "both.pth"
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(net(), torch.from_numpy(features())), script)
    path.write_bytes(pickle.dumps(Command(mark), protocol=2) + script.getvalue())
    return path


RUNNING: Mapping[str, Callable[[Path, Path], Path]] = {
    "a pickle of torch.save": _by_torch_save,
    "an old pickle of torch.save": _by_old_torch_save,
    "a pickle of protocol 5": _by_new_protocol,
    "a pickle before an archive": _behind_an_archive,
    "the example of a program": _by_example,
    "a weight of a program": _by_weight,
    "a guard of a program": _by_guard,
    "an expression of a program": _by_expression,
    "a library of a program": _by_library,
}
"""Writers by what runs the command, given a folder and the file that it makes."""
