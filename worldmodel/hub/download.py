"""Fetches published files: resumed where a connection was cut, verified, kept in one cache folder.

    ~/.cache/worldmodel/vjepa2-ac/vjepa2-ac-vitg.pt
                                  vjepa2-ac-vitg.pt.json    the receipt: url, size, sha256

`WORLDMODEL_CACHE` names another folder. A file appears under its name only when it is whole.
"""

import hashlib
import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from worldmodel.hub.registry import Model, RemoteFile, find

CHUNK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """Returns where downloads are kept: `WORLDMODEL_CACHE`, or ~/.cache/worldmodel."""
    return Path(os.environ.get("WORLDMODEL_CACHE") or Path.home() / ".cache" / "worldmodel")


def resolve(source: str | Path) -> tuple[Path, Model | None]:
    """Returns the file or folder of a source, and the model it names if it is a name.

    Args:
        source: A path, which is taken as it is, without any network; or the name of a published
            model, which is fetched unless the cache has it.

    Raises:
        FileNotFoundError: It is a path, and nothing is there.
        KeyError: It is neither a path nor a known name.
        ConnectionError: A download did not work; the message says what to do instead.
    """
    path = Path(source)
    if path.exists():
        return path, None
    if isinstance(source, Path) or len(path.parts) > 1 or path.suffix in (".pt", ".pth", ".tar"):
        raise FileNotFoundError(
            f"no checkpoint file at {path}; download it first, or pass the name of a published "
            "model (worldmodel models)"
        )
    model = find(str(source))
    return fetch(model), model


def fetch(model: Model) -> Path:
    """Returns the file of a model in the cache, or the folder if it has several; downloads them.

    Raises:
        ConnectionError: A file could not be fetched.
        ValueError: A file is not the published one.
    """
    folder = cache_folder() / model.name
    paths = [download(file, folder) for file in model.files]
    return paths[0] if len(paths) == 1 else folder


def download(file: RemoteFile, folder: Path) -> Path:
    """Returns the path of `file` in `folder`, fetched if it is not there yet.

    What a cut connection left is kept as `.part` and continued, in this call as long as every
    attempt brings something, and in the next call after that.

    Raises:
        ConnectionError: The server cannot be reached, refuses, or stops sending.
        ValueError: The size or the hash is not the published one; the file is removed.
    """
    target = folder / file.name
    receipt = read_receipt(target)
    if receipt and receipt["url"] == file.url and target.stat().st_size == receipt["size"]:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    while not _continue(file, part, target):
        pass
    digest = sha256(part)
    for what, expected, got in (
        ("a size of", file.size, part.stat().st_size),
        ("SHA-256", file.sha256, digest),
    ):
        if expected is not None and got != expected:
            part.unlink()
            raise ValueError(
                f"{file.url} has {what} {got}, expected {expected}: it was damaged on the way or "
                "is not the published file; it was removed, run again to fetch it anew"
            )
    size = part.stat().st_size
    os.replace(part, target)
    part.with_suffix(".etag").unlink(missing_ok=True)
    text = json.dumps({"url": file.url, "size": size, "sha256": digest}, indent=2)
    _receipt_path(target).write_text(text + "\n")
    return target


def read_receipt(path: Path) -> dict[str, Any] | None:
    """Returns url, size and sha256 of a file at its download; None if it was not fetched by us."""
    receipt = _receipt_path(path)
    return json.loads(receipt.read_text()) if path.is_file() and receipt.is_file() else None


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _receipt_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _continue(file: RemoteFile, part: Path, target: Path) -> bool:
    """Appends to `part` what the server sends; returns whether the file is whole."""
    have = part.stat().st_size if part.exists() else 0
    etag = part.with_suffix(".etag")
    request = urllib.request.Request(file.url, headers={"User-Agent": "worldmodel"})
    # Only bytes of the very same version may be continued: the server decides by its tag.
    if have and etag.exists():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", etag.read_text())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            start = have if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            etag.unlink(missing_ok=True)
            if response.headers.get("ETag"):
                etag.write_text(response.headers["ETag"])
            with (
                part.open("ab" if start else "wb") as stream,
                tqdm(
                    desc=file.name,
                    initial=start,
                    total=total,
                    unit="B",
                    unit_scale=True,
                    disable=None,
                ) as bar,
            ):
                while chunk := response.read(CHUNK):
                    stream.write(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # what we have is longer than the file: of another version
            part.unlink(missing_ok=True)
            return False
        raise ConnectionError(_advice(file, target, f"HTTP {error.code} {error.reason}")) from error
    except (OSError, http.client.HTTPException) as error:
        if part.exists() and part.stat().st_size > have:
            return False
        raise ConnectionError(_advice(file, target, str(error))) from error
    got = part.stat().st_size
    if total is None or got >= total:
        return True
    if got > have:
        return False
    raise ConnectionError(
        _advice(file, target, f"the connection ended after {got} of {total} bytes")
    )


def _advice(file: RemoteFile, target: Path, reason: str) -> str:
    return (
        f"cannot download {file.url} ({reason}); run again to go on, or fetch it elsewhere and "
        f"pass its path (the cache keeps it as {target})"
    )
