"""For mkdocs: a link to a file outside `docs/` becomes the file's path, since the site has no such page."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """`[label](../path)` → label (`path`)."""
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)
