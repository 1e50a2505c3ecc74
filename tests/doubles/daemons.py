"""Debian's Hyper-V daemons, without the kernel's driver beneath them: where that would be sits the test.

Each daemon runs in a folder of its own as its root, so that what it writes stays there, and has a library before all
others that gives it a socket in place of /dev/vmbus/hv_*. That library lets no file system be frozen: it notes that the
daemon wanted to.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

FOLDER = Path("/usr/sbin")
DAEMONS = ("hv_kvp_daemon", "hv_vss_daemon", "hv_fcopy_daemon")
LOADER = "/lib64/ld-linux-x86-64.so.2"
DOMAIN = "example.test"
DEVICE_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int device = -1;

int open(const char *path, int flags, ...)
{
    int (*next)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    va_list more;
    mode_t mode;

    va_start(more, flags);
    mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    if (!strncmp(path, "/dev/vmbus/", 11))
        return device = dup(atoi(getenv("DAEMON_SOCKET")));
    return next(path, flags, mode);
}

ssize_t pread(int file, void *data, size_t size, off_t offset)
{
    ssize_t (*next)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");

    return file == device ? recv(file, data, size, 0) : next(file, data, size, offset);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset)
{
    ssize_t (*next)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");

    return file == device ? send(file, data, size, 0) : next(file, data, size, offset);
}

int ioctl(int file, unsigned long request, ...)
{
    int log;

    if (request != FIFREEZE && request != FITHAW) {
        errno = ENOTTY;
        return -1;
    }
    if (request == FIFREEZE && !access("/cannot-freeze", F_OK)) {
        errno = EOPNOTSUPP;
        return -1;
    }
    log = open("/log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(log, request == FIFREEZE ? "freeze\n" : "thaw\n", request == FIFREEZE ? 7 : 5) < 0)
        return -1;
    return close(log);
}
"""


def _prefix(root: Path) -> list[str]:
    """Runs what follows with that folder as its root."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *own, "--mount", f"--root={root}"]


def missing() -> str:
    """What this machine lacks for them; empty if nothing."""
    if not all((FOLDER / name).exists() for name in DAEMONS):
        return "Debian's package hyperv-daemons is not installed"
    if shutil.which("gcc") is None:
        return "Debian's package gcc is not installed"
    if not Path(LOADER).exists():
        return "its daemons are for x86-64"
    tried = subprocess.run([*_prefix(Path("/")), "/bin/true"], capture_output=True, check=False)
    return "no program may have another root folder here" if tried.returncode else ""


_MISSING = missing()
needs_daemons = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)


def build(folder: Path) -> Path:
    """The library. Raises with the compiler's words."""
    library, source = folder / "device.so", folder / "device.c"
    source.write_text(DEVICE_SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def furnish(root: Path, library: Path, mounts: str = "") -> None:
    """What a daemon finds beneath its root: itself, the C library, a name, and a list of mounted file systems."""
    files = {LOADER: Path(LOADER), "/lib/x86_64-linux-gnu/libc.so.6": Path("/lib/x86_64-linux-gnu/libc.so.6")}
    files |= {f"/usr/sbin/{name}": FOLDER / name for name in DAEMONS} | {"/device.so": library}
    for place, source in files.items():
        target = root / place.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.resolve(), target)
    texts = {
        "etc/hosts": f"127.0.0.1 {socket.gethostname()}.{DOMAIN} {socket.gethostname()}\n",
        "etc/nsswitch.conf": "hosts: files\n",
        "etc/os-release": 'NAME="Debian GNU/Linux"\nVERSION_ID="12"\n',
        "proc/mounts": mounts,
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "var/lib").mkdir(parents=True, exist_ok=True)


@asynccontextmanager
async def daemon(root: Path, name: str) -> AsyncIterator[trio.socket.SocketType]:
    """The daemon, until the block ends; the socket is the kernel's end of its device."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {"DAEMON_SOCKET": str(theirs.fileno()), "LD_PRELOAD": "/device.so"}
    # The library is of the new root, which `unshare` itself has not got yet.
    settings = [f"{key}={value}" for key, value in environment.items()]
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    shutil.copy("/usr/bin/env", root / "usr/bin/env")
    command = [*_prefix(root), "/usr/bin/env", "-i", *settings, f"/usr/sbin/{name}", "-n"]
    process = await trio.lowlevel.open_process(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
    theirs.close()
    ours.setblocking(False)
    wire = trio.socket.from_stdlib_socket(ours)
    try:
        yield wire
    finally:
        wire.close()
        process.terminate()
        with trio.CancelScope(shield=True):
            with trio.move_on_after(5):
                await process.wait()
            process.kill()
            await process.wait()
