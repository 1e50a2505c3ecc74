"""Where the control sockets of running hosts are, and which of them are left over. Root side.

One socket a host, `TOPOLOGY-PID.sock`, in `$XDG_RUNTIME_DIR/partita` or, where there is no such directory, in
`/tmp/partita-UID`. Only the owner may look into that folder: one that is somebody else's, or open to others, is
refused, since whoever can put a socket there can pretend to be a host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

MAX_ADDRESS: Final = 107
"""Bytes of a Unix socket's address on Linux, its end not counted; other systems have a few less."""
SUFFIX: Final = ".sock"
MAX_NAME: Final = 40
_SHARED: Final = "/tmp"


class FolderRefused(OSError):
    """The folder for control sockets cannot be trusted or made; the text says why and what to do."""


def folders(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where hosts of this user put their sockets, the first choice first. They need not exist."""
    found = []
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    # Somebody else's is what `sudo -E` brings along.
    if os.path.isabs(runtime) and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.getuid():
        found.append(Path(runtime, "partita"))
    # Looked into all the same where there is the other: a host may have been started from cron, a client by hand.
    return [*found, Path(_SHARED, f"partita-{os.getuid()}")]


def check(folder: Path) -> None:
    """Raise `FolderRefused` unless `folder` is a directory of ours that nobody else can look into."""
    try:
        found = os.lstat(folder)
    except OSError as error:
        raise FolderRefused(error.errno, f"{folder}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise FolderRefused(errno.ENOTDIR, f"{folder} is not a directory; remove it")
    if found.st_uid != os.getuid():
        raise FolderRefused(
            errno.EPERM, f"{folder} belongs to uid {found.st_uid}; set XDG_RUNTIME_DIR to a directory of yours"
        )
    if found.st_mode & 0o077:
        raise FolderRefused(errno.EPERM, f"{folder} is open to others; close it with: chmod 700 {folder}")


def make(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for a new host's socket: the first that can be had. Raises `FolderRefused` of the first."""
    refused: FolderRefused | None = None
    for folder in folders(environment):
        try:
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                pass
            except OSError as error:
                raise FolderRefused(error.errno, f"{folder}: {error.strerror}") from None
            check(folder)
        except FolderRefused as error:
            refused = refused or error
        else:
            return folder
    assert refused is not None, "there is always a folder to try"
    raise refused


def name_of(topology: str) -> str:
    """A topology's path or name as the first part of a socket's name."""
    path = Path(topology)
    stem = path.stem if path.suffix == ".toml" else path.name
    if stem == "topology" and path.resolve().parent.name:
        stem = path.resolve().parent.name
    if not stem or stem.startswith("."):
        stem = path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-")[:MAX_NAME] or "host"


def sockets(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """The sockets in the folders that are ours, by name. Folders that cannot be trusted are passed over."""
    for folder in folders(environment):
        try:
            check(folder)
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        yield from (folder / name for name in names if name.endswith(SUFFIX))


@contextlib.contextmanager
def address(path: str | os.PathLike[str]) -> Iterator[str]:
    """What to bind or connect to for a path, which may be longer than an address can be."""
    whole = os.fspath(path)
    if len(os.fsencode(whole)) <= MAX_ADDRESS or not os.path.isdir("/proc/self/fd"):
        yield whole
        return
    folder, name = os.path.split(whole)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def is_left_over(path: Path) -> bool:
    """Whether nobody listens there any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            with address(path) as name:
                probe.connect(name)
        except ConnectionRefusedError:
            return True
        except OSError:  # a full backlog is a sign of life; what is gone need not be removed
            return False
    return False


def remove_left_over(environment: Mapping[str, str] = os.environ) -> None:
    """Remove sockets of hosts that ended without doing so: killed, or with their machine.

    A process number that is in use is left alone without a try: it is most likely the host itself.
    """
    for path in sockets(environment):
        pid = pid_of(path)
        if pid is not None and not _runs(pid) and is_left_over(path):
            remove(path)


def remove(path: Path) -> None:
    """Take a socket away, unless somebody was faster."""
    with contextlib.suppress(OSError):
        path.unlink()


def pid_of(path: Path) -> int | None:
    """The process that a socket's name names."""
    found = re.fullmatch(r".*-(\d{1,10})(?:\.\d+)?", path.name.removesuffix(SUFFIX))
    return None if found is None else int(found[1])


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def bind(path: Path) -> socket.socket:
    """A socket at `path` that only its owner can open, not listening yet; one that was left over there is replaced.

    Raises `OSError`, `FileExistsError` among them where a host listens there, or where what is there is no socket.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux takes a new socket's mode from its descriptor, so that there is no moment in which others can open it.
        with contextlib.suppress(OSError):  # elsewhere the folder is what keeps others out for that moment
            os.fchmod(listener.fileno(), 0o600)
        with address(path) as name:
            try:
                listener.bind(name)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                if not stat.S_ISSOCK(os.lstat(path).st_mode) or not is_left_over(path):
                    raise FileExistsError(errno.EEXIST, "a host listens there already, or it is no socket") from None
                os.unlink(path)
                listener.bind(name)
        os.chmod(path, 0o600)
    except BaseException:
        listener.close()
        raise
    return listener


def bind_new(topology: str, environment: Mapping[str, str] = os.environ) -> tuple[socket.socket, Path]:
    """A socket for a new host of `topology` in the usual folder. Raises `OSError`."""
    folder = make(environment)
    remove_left_over(environment)
    stem = f"{name_of(topology)}-{os.getpid()}"
    for number in range(1, 100):
        # The same process number can be there twice: several hosts in one process, or containers with one /tmp.
        path = folder / (f"{stem}{SUFFIX}" if number == 1 else f"{stem}.{number}{SUFFIX}")
        try:
            return bind(path), path
        except FileExistsError:
            continue
    raise FileExistsError(errno.EEXIST, f"{folder} has a hundred sockets of process {os.getpid()}")
