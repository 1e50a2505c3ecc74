"""`partita dissector`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from partitions.cli.main import main
from tests.doubles.captures import TO_ROOT, message, write_capture
from tests.doubles.tshark import TSHARK, needs_tshark
from vmbus.protocol import messages as m

FOLDER = Path(__file__).parents[3] / "partitions" / "dissector"


def test_the_path_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, an absolute path, so that `$(partita dissector)` can stand in a command."""
    assert main(["dissector"]) == 0
    assert capsys.readouterr().out == f"{FOLDER / 'vmbus.lua'}\n"


def test_the_help_tells_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The commands for a terminal and for Wireshark's window."""
    with pytest.raises(SystemExit) as end:
        main(["dissector", "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "tshark -X lua_script:$(partita dissector) -r FILE" in told
    assert "cp -r $(dirname $(partita dissector)) ~/.local/lib/wireshark/plugins/vmbus" in told


@needs_tshark
def test_a_copy_in_the_plugin_folder_works(tmp_path: Path) -> None:
    """Wireshark loads every script of its plugin folder by itself, the parts too; they have to bear it."""
    shutil.copytree(FOLDER, tmp_path / ".local/lib/wireshark/plugins/vmbus")
    capture = write_capture(tmp_path / "a.pcapng", [message(TO_ROOT, m.Unload().encode())])
    assert TSHARK is not None
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    command = [TSHARK, "-r", str(capture), "-T", "fields", "-e", "vmbus.message.type", "-e", "frame.protocols"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "16\tvmbus\n"
    assert "Lua" not in done.stderr
