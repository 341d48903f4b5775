"""A page without its server: what its cells showed, as pictures, tables and text; nothing in it runs or is asked for.

Voila sends what cells show as JSON, which a program in the page draws. That program is the server's, so here the same is
written as HTML. What only a program can draw is told by a line. The page is somebody's HTML: whoever sends it sends `POLICY` with it.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

import msgspec

POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
OUTPUT = re.compile(rb'<script type="application/vnd\.voila\.cell-output\+json">(.*?)</script>', re.DOTALL)
SCRIPT = re.compile(rb"<script\b.*?</script\s*>|<link\b[^>]*>", re.DOTALL | re.IGNORECASE)
BODY = re.compile(rb"<body[^>]*>")
STYLE = b"""<style>#loading{display:none!important} #rendered_cells{display:block!important} body{font:14px/1.5 system-ui,sans-serif;margin:12px}
pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace} table{border-collapse:collapse} td,th{padding:3px 12px;text-align:right;border-bottom:1px solid #e4e7ec}
img,svg{max-width:100%}</style>"""
PICTURES = ("image/png", "image/jpeg", "image/gif")
NEEDS = "<p><em>What stood here needs the page's server.</em></p>"


def still(page: bytes, banner: bytes = b"") -> bytes:
    """Return `page`, a whole rendering of Voila's, as a page in which nothing runs, below `banner`."""
    written = SCRIPT.sub(b"", OUTPUT.sub(_write, page))
    return BODY.sub(lambda found: found[0] + STYLE + banner, written, count=1)


def _write(found: re.Match[bytes]) -> bytes:
    try:
        output: dict[str, Any] = msgspec.json.decode(found[1])
        return f"<div class='jp-OutputArea-output'>{_html(output.get('data') or {})}</div>".encode()
    except (msgspec.MsgspecError, AttributeError):
        return NEEDS.encode()


def _html(data: dict[str, Any]) -> str:
    """Return the richest form of an output that stands by itself."""

    def words(kind: str) -> str:
        value = data.get(kind, "")
        return "".join(value) if isinstance(value, list) else str(value)

    if "application/vnd.jupyter.widget-view+json" in data:
        return NEEDS
    if html := words("text/html"):
        return f"<div class='jp-RenderedHTMLCommon'>{html}</div>" if SCRIPT.sub(b"", html.encode()).strip() else NEEDS
    if svg := words("image/svg+xml"):
        return svg
    for kind in PICTURES:
        if picture := words(kind).strip():
            return f"<img src='data:{kind};base64,{escape(picture, quote=True)}'>"
    text = words("text/markdown") or words("text/latex") or words("text/plain")
    return f"<pre>{escape(text)}</pre>" if text else NEEDS
