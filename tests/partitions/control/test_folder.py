"""Where control sockets are: a folder of the owner's alone, no socket left over, none replaced that lives."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from partitions import control_folder
from partitions.control_folder import FolderRefused
from partitions.control_protocol import Greeting
from partitions.remote import Found, NoHost, choose


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with control_folder.bind(path) as listener:
        listener.listen()
        yield listener


def dead_pid() -> int:
    """Of a process that has ended and was waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_runtime_directory_comes_first(tmp_path: Path) -> None:
    """XDG_RUNTIME_DIR where it is a directory; the other is looked into too, since cron knows no such variable."""
    shared = Path(f"/tmp/partita-{os.getuid()}")
    assert control_folder.folders({"XDG_RUNTIME_DIR": str(tmp_path)}) == [tmp_path / "partita", shared]
    for wrong in ("", "relative", str(tmp_path / "missing")):
        assert control_folder.folders({"XDG_RUNTIME_DIR": wrong}) == [shared]


def test_only_the_owner_can_look_in(tmp_path: Path) -> None:
    """The folder is made with mode 0700, a socket with 0600, whatever the umask."""
    before = os.umask(0)
    try:
        listener, path = control_folder.bind_new("farm", {"XDG_RUNTIME_DIR": str(tmp_path)})
    finally:
        os.umask(before)
    listener.close()
    assert path == tmp_path / "partita" / f"farm-{os.getpid()}.sock"
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path.parent, path)] == [0o700, 0o600]


@pytest.mark.parametrize("trap", ["open to others", "a link", "a file", "somebody else's"])
def test_a_folder_that_cannot_be_trusted_is_refused(tmp_path: Path, trap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can put a socket there can pretend to be a host: nothing is made there, and nothing is found.

    The other folder is taken, and where that cannot be had either, the first one's fault is told.
    """
    monkeypatch.setattr(control_folder, "_SHARED", str(tmp_path / "missing"))
    folder = tmp_path / "partita"
    match trap:
        case "open to others":
            folder.mkdir()
            folder.chmod(0o755)
        case "a link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            folder.symlink_to(tmp_path / "elsewhere")
        case "a file":
            folder.write_text("")
        case _:
            if os.getuid():
                pytest.skip("only root can give a directory away")
            folder.mkdir(mode=0o700)
            os.chown(folder, 12345, 12345)
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    with pytest.raises(FolderRefused, match=r"chmod 700|not a directory|belongs to uid 12345"):
        control_folder.make(environment)
    with pytest.raises(FolderRefused):
        control_folder.bind_new("farm", environment)
    if folder.is_dir():
        (folder / "farm-1.sock").touch()
    assert not list(control_folder.sockets(environment))
    (tmp_path / "missing").mkdir()
    assert control_folder.make(environment) == tmp_path / "missing" / f"partita-{os.getuid()}"


@pytest.mark.parametrize(
    ("topology", "name"),
    [
        *(("03-disk", "03-disk"), ("examples/03-disk/", "03-disk"), ("a/b/topology.toml", "b"), ("farm.toml", "farm")),
        *(("my farm (2)!", "my-farm-2"), ("x" * 99, "x" * 40), ("...", "control"), ("\u00fcber", "ber")),
    ],
)
def test_a_socket_is_named_after_its_topology(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topology: str, name: str
) -> None:
    """In letters that every shell leaves alone, and not too many of them."""
    (tmp_path / "control").mkdir()
    monkeypatch.chdir(tmp_path / "control")
    assert control_folder.name_of(topology if topology != "..." else ".") == name


def test_what_was_left_over_is_removed(tmp_path: Path) -> None:
    """A host that was killed leaves its socket; the next one to start removes it, and none that is listened on."""
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    folder = control_folder.make(environment)
    killed = folder / f"farm-{dead_pid()}.sock"
    control_folder.bind(killed).close()
    foreign = folder / f"container-{dead_pid()}.sock"  # of a process that has its number in another namespace
    with listening(foreign):
        listener, path = control_folder.bind_new("farm", environment)
        listener.close()
        assert not killed.exists()
        assert set(folder.iterdir()) == {foreign, path}


def test_a_second_host_of_one_process_has_a_name_of_its_own(tmp_path: Path) -> None:
    """The first socket is listened on and stays."""
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    first, path = control_folder.bind_new("farm", environment)
    first.listen()
    second, other = control_folder.bind_new("farm", environment)
    assert (other.name, control_folder.pid_of(other)) == (f"farm-{os.getpid()}.2.sock", os.getpid())
    assert control_folder.pid_of(path) == os.getpid()
    first.close()
    second.close()


def test_a_place_by_name(tmp_path: Path) -> None:
    """A dead socket there is replaced; one that lives is not, nor what is no socket at all."""
    path = tmp_path / "a.sock"
    control_folder.bind(path).close()
    with listening(path), pytest.raises(FileExistsError):
        control_folder.bind(path)
    control_folder.bind(path).close()
    precious = tmp_path / "thesis.txt"
    precious.write_text("all of it")
    with pytest.raises(FileExistsError):
        control_folder.bind(precious)
    assert precious.read_text() == "all of it"


def test_a_path_may_be_long(tmp_path: Path) -> None:
    """An address has 108 bytes, a path many more; what is too long for one is named by its folder's descriptor."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    path = folder / "a.sock"
    files = len(os.listdir("/proc/self/fd"))
    with listening(path):
        assert not control_folder.is_left_over(path)
    assert control_folder.is_left_over(path)
    assert len(os.listdir("/proc/self/fd")) == files


def found(label: str, name: str, *vms: str) -> Found:
    greeting = Greeting(name=name, pid=int(label.rpartition("-")[2]), clock="real", seconds=1.0, vms=list(vms))
    return Found(Path(f"/x/{label}.sock"), greeting)


FARM, OTHER, DISK = found("farm-1", "farm"), found("farm-22", "farm"), found("disk-22333", "disk")


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [("farm-1", FARM), ("22", OTHER), ("disk", DISK), ("disk-22333", DISK), ("22333", DISK)],
)
def test_which_host_is_meant(wanted: str, meant: Found) -> None:
    """By the socket's name, the topology's where it is one alone, or the process number."""
    assert choose([FARM, OTHER, DISK], wanted) is meant


@pytest.mark.parametrize(
    ("hosts", "wanted", "words"),
    [
        ([], None, "no host runs that could be asked; start one with: partita run TOPOLOGY"),
        ([FARM, DISK], None, "several hosts run; choose one with --host: farm-1, disk-22333"),
        ([FARM, OTHER, DISK], "farm", "several hosts run; choose one with --host: farm-1, farm-22"),
        ([FARM, DISK], "frm", 'no host "frm" runs; did you mean "farm"?'),
        ([FARM, DISK], "zzz", 'no host "zzz" runs; there are farm-1, disk-22333'),
    ],
)
def test_no_host_is_meant(hosts: list[Found], wanted: str | None, words: str) -> None:
    """None, or more than one: the words have those that there are."""
    with pytest.raises(NoHost) as caught:
        choose(hosts, wanted)
    assert str(caught.value) == words


def test_a_vm_says_which_host_is_meant() -> None:
    """Where only one has it; one that does not answer might have it, too, and a name that is given wins."""
    farm, lab = found("farm-1", "farm", "web", "db"), found("lab-2", "lab", "web", "desk")
    silent = Found(Path("/x/mute-3.sock"), None)
    assert choose([farm, lab], None, ["desk"]) is lab
    assert choose([farm, lab], None, ["web", "db"]) is farm
    assert choose([farm, lab], "farm", ["desk"]) is farm
    for hosts, vms in (([farm, lab], ["web"]), ([farm, lab], ["db", "desk"]), ([farm, lab, silent], ["desk"])):
        with pytest.raises(NoHost, match="several hosts run; choose one with --host: "):
            choose(hosts, None, vms)


def test_the_only_host_is_meant() -> None:
    """Then nobody need say which."""
    assert choose([FARM], None) is FARM
