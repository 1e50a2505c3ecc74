"""The first example of docs/python.md runs as it stands there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_first_example_of_the_python_page_runs() -> None:
    source = DOCUMENT.read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["writer True powered off", "reader True powered off"]
