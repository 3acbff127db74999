"""Draws the Mermaid diagrams of the pages when the site is built, so that no page loads or runs a script for them."""

import hashlib
from typing import Any

import mmdr
from mkdocs.config.defaults import MkDocsConfig

CLASS = "diagram"
"""Not `mermaid`, for which the theme would load Mermaid's own script from elsewhere."""


def on_config(config: MkDocsConfig) -> None:
    """Makes the fence `mermaid` one that `draw` turns into a picture."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "mermaid", "class": CLASS, "format": draw})


def draw(source: str, language: str, class_name: str, options: dict[str, Any], md: Any, **ignored: Any) -> str:
    """Returns a diagram as SVG; one that cannot be drawn fails the build.

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
