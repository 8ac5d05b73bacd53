"""Files that survive a power cut: what was flushed is on disk, what was renamed is whole."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of entries, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
