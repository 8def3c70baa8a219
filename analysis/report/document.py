"""One HTML file with style, script and data in it, which loads nothing; the reports and the watched talks are such."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The page may load nothing: a browser refuses every request."""


@dataclass(frozen=True, slots=True)
class LayerSlider:
    """The slider for the layers at the top of a page.

    Attributes:
        layers: The layers.
        start: Index of the one at which the page opens.
    """

    layers: Sequence[int]
    start: int

    def html(self) -> str:
        """Write the slider and the layer beside it."""
        count = len(self.layers)
        return (
            f"<label for='layer'>Layer</label><input type='range' id='layer' min='0' max='{count - 1}' step='1' "
            f"value='{self.start}' {'disabled ' if count == 1 else ''}aria-label='Layer'>"
            f"<output id='layer-now' for='layer'>layer {self.layers[self.start]}</output>"
        )


def document(
    title: str, slider: LayerSlider, body: str, data: dict[str, Any], styles: Sequence[str], scripts: Sequence[str]
) -> str:
    """Put a page together.

    Args:
        title: Title of the page, as text.
        slider: The slider for the layers.
        body: The content, as HTML.
        data: What the script reads, as JSON values.
        styles: Texts of the style sheets, in order.
        scripts: Texts of the scripts, in order; they share one scope.
    """
    style, script = "\n".join(styles), "\n".join(scripts)
    return (
        "<!doctype html>\n<html lang='en' data-theme='light'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'><link rel='icon' href='data:,'>"
        f"<title>Persona Atlas: {escape(title)}</title><style>{style}</style></head><body>\n"
        f"<div class='bar'><div>{slider.html()}<button type='button' id='theme'>Dark</button></div></div>\n"
        f"<main><noscript><p class='note'>The charts need JavaScript; the tables do not.</p></noscript>\n{body}\n"
        "<footer>Written by Persona Atlas. Method: Lu, Gallagher, Michala, Fish and Lindsey, The Assistant Axis, "
        "arXiv 2601.10387.</footer></main>\n<div class='tip' id='tip' role='status' hidden></div>\n"
        f"<script type='application/json' id='data'>{_json(data)}</script>\n"
        f'<script>(() => {{\n"use strict";\n{script}\n}})();</script>\n</body></html>\n'
    )


@cache
def asset(name: str, package: str = __name__.rpartition(".")[0]) -> str:
    """Read a script or a style sheet of a package's folder ``assets``.

    Args:
        name: Name of the file.
        package: Full name of the package; by default that of the reports.
    """
    return (files(package) / "assets" / name).read_text(encoding="utf-8")


def _json(data: dict[str, Any]) -> str:
    """Encode data for a script element, in which no text can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
