"""Draws the Mermaid diagrams of the pages when the site is built, so that no page loads or runs a script for them."""

import hashlib
from typing import Any

import mmdr


def draw(source: str, language: str, class_name: str, options: dict[str, Any], md: Any, **ignored: Any) -> str:
    """Returns a diagram as SVG; a fence that cannot be drawn fails the build.

    Args:
        source: The diagram in Mermaid's language.
        language: Name of the fence.
        class_name: CSS class of the result.
        options: Of the fence; none is known.
        md: The Markdown converter.
        ignored: What else the converter hands over.
    """
    name = f"diagram-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    svg = mmdr.render(source).svg().replace("merman", name)  # the styles of two diagrams on one page must not mix
    return f'<div class="{class_name}">{svg}</div>'
