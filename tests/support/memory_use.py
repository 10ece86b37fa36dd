"""What a process and all that it started hold, watched while a block runs."""

from __future__ import annotations

import stat
import threading
from contextlib import contextmanager
from pathlib import Path


class Watched:
    """What was seen: the most memory and bytes of files, and every large file by its inode."""

    def __init__(self):
        self.peak_bytes = self.files_bytes = 0
        self.inodes = set()


@contextmanager
def watched(pid, folder, *, large_bytes):
    """Look every 0.1 s at the memory of a process and its descendants, and at a folder's files.

    Memory is the sum of Pss (proportional set size, /proc/PID/smaps_rollup): a page that several
    processes share, as of a file mapped by all, counts once, and its share of the cache counts as
    long as it is mapped.
    """
    seen, done = Watched(), threading.Event()

    def watch():
        while not done.wait(0.1):
            seen.peak_bytes = max(seen.peak_bytes, sum(map(pss_bytes, tree(pid))))
            sizes = _sizes(folder)
            seen.files_bytes = max(seen.files_bytes, sum(sizes.values()))
            seen.inodes |= {inode for inode, size in sizes.items() if size >= large_bytes}

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def tree(pid):
    """A process and its descendants, by id."""
    children = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue  # it has ended
            children.setdefault(parent, []).append(int(place.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def pss_bytes(pid):
    """Proportional set size of a process; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:"))


def files_bytes(folder):
    """Bytes of the files of a folder, one with several names once."""
    return sum(_sizes(folder).values())


def _sizes(folder):
    sizes = {}
    for path in Path(folder).rglob("*"):
        try:
            found = path.stat()
        except OSError:
            continue  # it is gone
        if stat.S_ISREG(found.st_mode):
            sizes[found.st_ino] = found.st_size
    return sizes
