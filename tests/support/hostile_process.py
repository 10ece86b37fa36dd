"""Reads hostile files, each in a process of its own, and reports how it ended as JSON.

The words are the working folder, ways with commas between, and names of files. Each process is
forked from this one, where all is imported, and so are its own workers: memory is that of all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import sysconfig
import time
import warnings
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.simplefilter("ignore")

import hostile_files  # noqa: E402 - after the settings
import memory_use  # noqa: E402

import mlflow_e2eai  # noqa: E402
from mlflow_e2eai.cli.readers import inspect  # noqa: E402
from mlflow_e2eai.errors import E2EAIError  # noqa: E402
from mlflow_e2eai.flavor import api  # noqa: E402, F401 - for the forked
from mlflow_e2eai.pipeline import build  # noqa: E402, F401 - the same

LIMIT_S = 10.0
READABLE = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(sysconfig.get_path("stdlib")).parent),
    str(Path(mlflow_e2eai.__file__).parent),
    str(Path(__file__).parent),
    *("/proc/", "/sys/", "/dev/", "/etc/ld.so", "/usr/", "/lib"),
)


def ending(work, folder: Path) -> str:
    """How a call ends: what is wrong with that, or nothing where one sentence of ours ends it."""
    outside: list[str] = []

    def hook(event: str, arguments: tuple) -> None:
        if event in ("open", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink"):
            named = arguments[0]
            if isinstance(named, str | bytes | os.PathLike):
                path = os.path.realpath(Path.cwd() / os.fsdecode(named))
                if not path.startswith((str(folder), *READABLE)):
                    outside.append(f"{event} {path}")

    os.chdir(folder)
    sys.addaudithook(hook)
    try:
        work()
        how = "accepted"
    except E2EAIError as error:
        sentence = str(error)
        how = f"not one line: {sentence[:200]!r}" if not sentence.isprintable() else ""
        how = how or (f"{len(sentence)} characters" if len(sentence) > 1500 else "")
    except BaseException as error:  # noqa: BLE001 - any other is what this looks for
        how = f"{type(error).__name__}: {str(error)[:200]}"
    return how or (f"outside: {outside[:3]}" if outside else "")


def watched(name: str, work, folder: Path) -> dict[str, object]:
    """Fork a process for a call; its ending, seconds and bytes."""
    answer = folder.parent / f"{folder.name}.answer"
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.environ["TMPDIR"] = str(folder)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        how = ending(work, folder)
        answer.write_text(how)
        os._exit(0)
    most = 0
    while True:
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done or time.monotonic() - began > 6 * LIMIT_S:
            break
        most = max(most, sum(map(memory_use.pss_bytes, memory_use.tree(pid))))
        time.sleep(0.05)
    seconds = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not done:
        os.waitpid(pid, 0)
    how = answer.read_text() if answer.exists() else ("no end" if not done else "it died")
    return {"name": name, "how": how, "seconds": seconds, "bytes": most}


def _save(path: Path) -> None:
    mlflow_e2eai.save_model(str(path), path.parent / "out", precisions=("fp32",), evidence="quick")


def _leave(path: Path) -> None:
    """Does what no reader may do, to see that it is seen."""
    secret = path.parent.parent / "outside" / "secret"
    secret.parent.mkdir(exist_ok=True)
    secret.write_bytes(b"")
    raise E2EAIError


WAYS = {"inspect": lambda path: inspect(str(path)), "save_model": _save, "leave": _leave}
"""What is done with each file."""


def main() -> None:
    place = Path(sys.argv[1])
    for at, name in enumerate(sys.argv[3:]):
        for way in sys.argv[2].split(","):
            folder = place / f"{at}-{way}" / "work"
            path = hostile_files.write(name, folder)
            work = partial(WAYS[way], path)
            line = json.dumps({"way": way, **watched(name, work, folder)})
            print(line, flush=True)  # noqa: T201 - its result


if __name__ == "__main__":
    main()
