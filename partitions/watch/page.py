"""The page as one file that needs nothing else: markup, style, script and a recording, all inside. Root side.

The policy in the page lets exactly this script and this style run, by their hashes, and lets the page talk to nobody
but the host it came from, if any. The recording is packed and in base64, so no text of a guest's is markup anywhere.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import re
import zlib
from importlib import resources
from typing import Final

SCRIPTS: Final = ("model", "words", "dom", "layout", "picture", "list", "detail", "player", "live", "main")
"""In this order they are one script."""

_PLACE: Final = re.compile(r"\{\{(\w+)\}\}")


def file_page(title: str, recording: bytes) -> bytes:
    """A page with a recording in it: JSON, as `partitions.watch.export` makes it."""
    packed = base64.b64encode(zlib.compress(recording, 9)).decode()
    return _page(title, recording=packed)


def live_page(title: str, events: str) -> bytes:
    """A page that gets its events from this address, relative to its own."""
    return _page(title, live=events)


@functools.cache
def policy(*, live: bool) -> str:
    """The Content-Security-Policy of a page."""
    rules = {
        "default-src": "'none'",
        "script-src": f"'sha256-{_digest(_script())}'",
        "style-src": f"'sha256-{_digest(_asset('page.css'))}'",
        "img-src": "data:",
        "connect-src": "'self'" if live else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _page(title: str, *, recording: str = "", live: str = "") -> bytes:
    parts = {
        "policy": policy(live=bool(live)),
        "title": html.escape(title),
        "live": html.escape(live),
        "recording": recording,
        "style": _asset("page.css"),
        "script": _script(),
    }
    # One pass, so that what is put in is not looked through for places again.
    return _PLACE.sub(lambda found: parts[found[1]], _asset("page.html")).encode()


@functools.cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


@functools.cache
def _script() -> str:
    return "\n".join(_asset(f"{name}.js") for name in SCRIPTS)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
