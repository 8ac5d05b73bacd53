"""Files that survive a power cut, and the processes that were writing them when it came."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of entries, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It exists and belongs to someone else.
        return True
    try:  # A zombie answers too, but is dead: it only waits to be asked how it ended.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # No /proc here, or it hides the process: stay on the safe side.
        return True
    return state not in ("Z", "X")
