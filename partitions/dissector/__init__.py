"""The Wireshark dissector that reads recordings: written in Lua, and independent of `partitions.decode`. Root side.

docs/wireshark.md tells how to use it.
"""

from pathlib import Path
from typing import Final

PATH: Final = Path(__file__).parent / "vmbus.lua"
"""What `tshark -X lua_script:PATH` takes; the folder `parts` beside it belongs to it."""
