"""Bytes from a path or a web address, bounded in size and time."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from kinema.errors import MediaError

TIMEOUT = 20.0  # seconds a server may stay silent
LARGEST = 1 << 30  # bytes


def is_url(source: object) -> bool:
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def read(source: str | os.PathLike[str]) -> bytes:
    """The whole content. Raises MediaError that says what was missing, refused, too slow or too large."""
    return _download(source) if isinstance(source, str) and is_url(source) else _file(source)


def check(path: str | os.PathLike[str]) -> int:
    """A file's size in bytes. Raises MediaError where there is no file to read."""
    try:
        with Path(path).open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise MediaError(f"There is no file {path}; check the path.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MediaError(f"Cannot read {path}: {reason}; choose another file.") from error


def _file(path: str | os.PathLike[str]) -> bytes:
    if check(path) > LARGEST:
        raise MediaError(f"{path} is larger than {LARGEST >> 20} MiB; cut it first.")
    return Path(path).read_bytes()


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "kinema"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            content: bytes = answer.read(LARGEST + 1)
            promised = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        raise MediaError(f"The server refused {url}: {error.code} {error.reason}; check the address.") from error
    except TimeoutError as error:
        raise MediaError(f"{url} did not answer within {TIMEOUT:g} seconds; try again or download it first.") from error
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise MediaError(f"Cannot fetch {url}: {reason}; check the address and the connection.") from error
    if len(content) > LARGEST:
        raise MediaError(f"{url} is larger than {LARGEST >> 20} MiB; download and cut it first.")
    if promised and promised.isdigit() and len(content) < int(promised):
        raise MediaError(f"{url} ended after {len(content)} of {promised} bytes; try again.")
    return content
