"""Where files lie: a local path or an address such as s3://bucket/shards, with one set of operations for both.

A local place is a `pathlib.Path`. A remote one is a `RemotePath`: it has the few methods of Path that we use, and goes
through fsspec, which is imported only then.
"""

import errno
import os
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from configs.home import resolve
from configs.section import UsageError

_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_TWO_COLONS = "\ue000\ue001"
_CHAIN = re.compile(r"::[a-z][a-z0-9+.-]*://")
_FINAL = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST}
"""Errors that another try does not mend; refused access is another."""
_REFUSED_STATUS = frozenset({401, 403})
_REFUSED_CODES = frozenset({"ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"})
"""S3's codes that s3fs does not turn into PermissionError."""
_CREDENTIAL_ERRORS = frozenset(
    {
        "ClientAuthenticationError",
        "CredentialRetrievalError",
        "DefaultCredentialsError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "RefreshError",
        "SSOTokenLoadError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
    }
)
"""Names of the errors of botocore, google-auth and azure-core: the stores' libraries need not be installed."""
_OF_THE_STORAGE = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EDQUOT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.ENOTCONN,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
    }
)
"""Errors of a mounted network disk, or of this machine."""


@dataclass(frozen=True)
class Entry:
    """What a folder holds under one name."""

    name: str
    path: str
    """Holds surrogate escapes if a local name is not UTF-8."""
    kind: Literal["folder", "file", "other"]
    num_bytes: int
    """0 for a folder, or if the size is not known."""


@dataclass(frozen=True)
class RemotePath:
    """A file or folder at an address; the methods are those of `pathlib.Path`, and raise OSError as they do."""

    url: str
    retry_seconds: tuple[float, ...] = field(default=(0.1, 0.5, 1.0, 2.0, 4.0), compare=False, repr=False)
    """Waits before each new try of a request that failed. The first is short: single failures are common, and batches
    wait for them."""

    def __str__(self) -> str:
        """Returns the address."""
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        """Returns what lies below this folder."""
        return replace(self, url=f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]

    def exists(self) -> bool:
        """Tells whether anything is there."""
        return bool(self._try("exists"))

    def is_dir(self) -> bool:
        """Tells whether it is a folder: in object stores, whether anything lies below it."""
        return bool(self._try("isdir"))

    def glob(self, pattern: str) -> list["RemotePath"]:
        """Returns what lies in this folder under a name like `pattern`."""
        try:
            return [self / entry.name for entry in self.entries() if fnmatchcase(entry.name, pattern)]
        except FileNotFoundError:
            return []

    def entries(self) -> list[Entry]:
        """Returns what lies in this folder."""
        found = [item for item in self._try("ls", detail=True) if item["name"].rstrip("/") != self._fs_path()]
        return [self._entry(item) for item in found]

    def read_bytes(self) -> bytes:
        """Returns the file's bytes."""
        return bytes(self._try("cat_file"))

    def read_files(self, names: Sequence[str]) -> list[bytes]:
        """Returns the bytes of several files of this folder, fetched at once; one that fails is tried again alone."""
        system, path = _file_system(self.url)
        found = system.cat_ranges([f"{path.rstrip('/')}/{name}" for name in names], None, None)
        return [
            data if isinstance(data, bytes) else (self / name).read_bytes()
            for name, data in zip(names, found, strict=True)
        ]

    def read_range(self, offset: int, num_bytes: int) -> bytes:
        """Returns `num_bytes` bytes from `offset`; fewer only at the file's end."""
        data = bytes(self._try("cat_file", start=offset, end=offset + num_bytes))
        # A server that ignores ranges sends the whole file.
        return data if len(data) <= num_bytes else data[offset : offset + num_bytes]

    def write_bytes(self, data: bytes, mode: Literal["overwrite", "create"] = "overwrite") -> None:
        """Writes a small file; with `create`, raises FileExistsError if there is one and the store can tell."""
        self._try("pipe_file", data, mode=mode)

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the file."""
        try:
            self._try("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def download(self, path: Path) -> None:
        """Copies the file to a local one."""
        self._try("get_file", str(path))

    def upload(self, path: Path) -> None:
        """Copies a local file to this address; large files go up in parts."""
        self._try("put_file", str(path), local_first=True)

    def copy(self, url: str) -> None:
        """Copies the file to another address of the same store, inside the store if it can."""
        self._try("cp_file", str(_file_system(url)[1]))

    def _entry(self, item: dict[str, Any]) -> Entry:
        name = item["name"].rstrip("/").rpartition("/")[2]
        path = self / name
        if item["type"] == "directory":
            return Entry(_shown(self.url, name), path.url, "folder", 0)
        size = item["size"]
        if size is None:  # pages of web servers list names alone
            size = path._try("size") or 0
        return Entry(_shown(self.url, name), path.url, "file", size)

    def _fs_path(self) -> str:
        return str(_file_system(self.url)[1]).rstrip("/")

    def _try(self, method: str, *arguments: Any, local_first: bool = False, **options: Any) -> Any:
        """Returns what a method of the file system returns; tries again after errors that may pass."""
        system, path = _file_system(self.url)
        arguments = (*arguments, path) if local_first else (path, *arguments)
        for delay in (*self.retry_seconds, None):
            try:
                return getattr(system, method)(*arguments, **options)
            except tuple(_FINAL) as error:
                code = next(code for kind, code in _FINAL.items() if isinstance(error, kind))
                raise OSError(code, os.strerror(code), self.url) from error
            except Exception as error:  # each store's library has its own errors, without a common base
                if _is_refused(error):
                    reason = f"the storage refuses these credentials ({_one_line(error)})"
                    raise OSError(errno.EACCES, reason, self.url) from error
                if delay is None:
                    raise OSError(errno.EIO, _one_line(error), self.url) from error
            time.sleep(delay * random.uniform(0.5, 1.5))


Location = Path | RemotePath
"""Where a file or a folder lies."""


def is_url(name: str) -> bool:
    """Tells an address from the name of a local file."""
    return _URL.match(name) is not None


def at(path: str) -> Location:
    """Returns the location that an absolute path or an address names."""
    return RemotePath(path) if is_url(path) else Path(path)


def locate(name: str) -> Location:
    """Returns the location that a command's argument names; a relative path starts from `home()`.

    Raises:
        UsageError: No installed library opens this kind of address.
    """
    if not is_url(name):
        return resolve(name)
    if chain := _CHAIN.search(name):
        raise UsageError(
            f"{name} chains file systems (::), which is not supported: give the address {name[chain.start() + 2 :]} "
            "itself, or a copy of what lies there"
        )
    try:
        _file_system(name)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{name} cannot be opened: {error}; `pip install 'clipstream[s3]'` is for s3://") from error
    return RemotePath(name.rstrip("/"))


def list_folder(folder: Location) -> list[Entry]:
    """Returns what a folder holds, sorted by name.

    Raises:
        OSError: The folder cannot be read.
    """
    if isinstance(folder, RemotePath):
        entries = folder.entries()
    else:
        with os.scandir(folder) as found:
            entries = [_local_entry(entry) for entry in found]
    return sorted(entries, key=lambda entry: entry.name)


def relative_name(path: str, folder: Location) -> str:
    """Returns the path of a file relative to a folder above it, with / between folders."""
    if isinstance(folder, RemotePath):
        return _shown(folder.url, path.removeprefix(f"{folder.url}/"))
    return os.path.relpath(path, folder).replace(os.sep, "/")


def concerns_the_file(error: OSError) -> bool:
    """Tells whether reading failed because of the file (it is gone or protected), not because of what stores it.

    Credentials, the network, a mount that went away or a full disk are no property of a file: another file would fail
    too, and this one can be read once the cause is gone.
    """
    if isinstance(error.filename, str) and is_url(error.filename):
        return isinstance(error, FileNotFoundError)
    return error.errno not in _OF_THE_STORAGE


def is_inside(location: Location, folder: Location) -> bool:
    """Tells whether a location is a folder or lies below it."""
    if isinstance(location, Path) and isinstance(folder, Path):
        return location.resolve().is_relative_to(folder.resolve())
    return f"{location}/".startswith(f"{folder}/")


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    # fsspec takes a file named `x::y.mp4` for a chain of two file systems, so it is not shown the colons. It keeps the
    # instances itself. A listings cache would hide files that were written since.
    system, path = fsspec.core.url_to_fs(url.replace("::", _TWO_COLONS), use_listings_cache=False)
    return system, path.replace(_TWO_COLONS, "::")


def _is_refused(error: Exception) -> bool:
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return (
        isinstance(error, PermissionError)
        or getattr(error, "status", None) in _REFUSED_STATUS
        or type(error).__name__ in _CREDENTIAL_ERRORS
        or code in _REFUSED_CODES
    )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _shown(folder_url: str, name: str) -> str:
    return unquote(name) if folder_url.startswith(("http://", "https://")) else name


def _local_entry(entry: os.DirEntry[str]) -> Entry:
    try:
        if entry.is_dir():
            return Entry(entry.name, entry.path, "folder", 0)
        return Entry(entry.name, entry.path, "file" if entry.is_file() else "other", entry.stat().st_size)
    except OSError:
        # A link that leads nowhere, or to itself, is a candidate video; the pack then rejects it as unreadable.
        return Entry(entry.name, entry.path, "file" if entry.is_symlink() else "other", 0)
