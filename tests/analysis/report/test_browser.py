"""The page in a real browser: nothing is complained of or requested, and slider, hover, click, keys and themes work."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.analysis.report import Origin, origin_of_vectors, render_page
from persona_atlas.storage.derived.reductions import Reduction

from browser import CHROMIUM, Page, browser
from full_reduction import full_origin, full_reduction

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")

DESKTOP, PHONE = (1440, 900), (390, 844)


@pytest.fixture(scope="module")
def small() -> Reduction:
    return full_reduction(num_roles=60, num_traits=50, num_layers=6, d_model=8, num_rollouts=200)


def written(folder: Path, name: str, reduction: Reduction, origin: Origin | None = None) -> Path:
    path = folder / f"{name}.html"
    path.write_text(render_page(origin or full_origin(reduction), reduction), encoding="utf-8")
    return path


def thin_ones(small: Reduction) -> dict[str, tuple[Reduction, Origin]]:
    """Make reductions that lack what a page draws: imported vectors, one layer, two roles, layers without numbers."""
    bare = Reduction("0" * 16, (3,), (), (), {})
    imported = dataclasses.replace(
        bare,
        layers=small.layers,
        role_names=small.role_names,
        role_vectors=small.role_vectors,
        default_vector=small.default_vector,
        axis=small.axis,
    )
    one = full_reduction(num_roles=4, num_traits=3, num_layers=1, d_model=4, num_rollouts=20)
    two = full_reduction(num_roles=2, num_traits=1, num_layers=3, d_model=4, num_rollouts=20)
    two = dataclasses.replace(two, pca_components=None, pca_z_components=None, trait_pca_components=None)
    holes: dict[str, Any] = {}
    for name, first_axis in (("axis", 0), ("role_projection", 1), ("pca_components", 0), ("pca_variance_ratio", 0)):
        values = np.moveaxis(getattr(small, name).copy(), first_axis, 0)
        values[3] = np.nan
        holes[name] = np.moveaxis(values, 0, first_axis)
    return {
        "nothing": (bare, origin_of_vectors(bare)),
        "imported": (imported, origin_of_vectors(imported, n_layers=6)),
        "one-layer": (one, full_origin(one)),
        "two-roles": (two, full_origin(two)),
        "holes": (dataclasses.replace(small, **holes), full_origin(small)),
    }


async def middle_of(page: Page, selector: str) -> tuple[float, float]:
    box = await page.js(
        f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
        " return [r.left + r.width / 2, r.top + r.height / 2]; })()"
    )
    return box[0], box[1]


async def text(page: Page, selector: str) -> str:
    return await page.js(f"document.querySelector({selector!r}).textContent")


async def use(page: Page) -> None:
    """Do what a reader does, and check what is shown."""
    assert "layer 3 of 0" in await text(page, "#layer-now")
    half = await text(page, "#tile-half")
    row = await text(page, "#numbers tbody tr:nth-child(2) td:nth-child(3)")
    circles = await page.js(
        "[...document.querySelectorAll('#map-chart circle')].map((c) => c.getAttribute('cx')).join()"
    )
    await page.js("document.querySelector('#layer').focus()")
    await page.press("ArrowRight", 39)
    assert "layer 4 of 0" in await text(page, "#layer-now")
    assert await page.js("document.querySelector('#layer').getAttribute('aria-valuetext')") == "layer 4"
    assert await text(page, "#tile-half") != half
    assert await text(page, "#numbers tbody tr:nth-child(2) td:nth-child(3)") != row
    assert circles != await page.js(
        "[...document.querySelectorAll('#map-chart circle')].map((c) => c.getAttribute('cx')).join()"
    )
    assert "at layer 4" in await text(page, "#needed")

    await page.js("document.querySelector('#map-chart').scrollIntoView({block: 'center'})")
    # A page that scrolls hides what hovers, and it is told of the scrolling with the next frame.
    await page.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    x, y = await middle_of(page, "#map-chart circle:last-of-type")
    await page.point(x, y)
    assert await page.js("!document.querySelector('#tip').hidden")
    shown = await text(page, "#tip")
    name = shown.split(" (role)")[0]
    assert "projection" in shown
    assert "95 % interval" in shown
    assert "n = " in shown
    assert "The lamp is lit" in shown
    await page.point(x, y, click=True)
    chosen = await text(page, "#chosen")
    assert chosen.startswith(name)
    for part in ("System prompt", "Question", "Response", "score 3", "projection"):
        assert part in chosen
    await page.point(2, 2)

    await page.js("document.querySelector('#map-chart').focus()")
    await page.press("ArrowRight", 39)
    assert not (await text(page, "#chosen h3")).startswith(name)
    flat = await text(page, "#map-chart")
    for group, value in (("dims", "3"), ("space", "zscored"), ("space", "traits")):
        await page.js(f"document.querySelector('[data-group={group}][data-value=\"{value}\"]').click()")
        assert "PC3" in await text(page, "#map-chart")
    assert "PC3" not in flat
    assert "difference has no place among the roles" in await text(page, "#map-words")
    assert await page.js("document.querySelectorAll('#roles-chart g').length") < 45
    await page.js("document.querySelector('#roles-all').click()")
    assert await page.js("document.querySelectorAll('#roles-chart g').length") == 61


async def look(page: Page, size: tuple[int, int]) -> None:
    """Check that a page fits into the window and uses it, and that its texts are there to be read."""
    width, shown, body = await page.js(
        "[document.documentElement.scrollWidth, document.querySelector('section').clientWidth,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    assert width <= size[0]
    assert shown > 0.85 * size[0]
    assert body
    # No text of a chart leaves the page, and every chart has a name for those who do not see it.
    outside = await page.js(
        "[...document.querySelectorAll('svg text')].filter((t) => { const r = t.getBoundingClientRect();"
        " return r.width && (r.left < -1 || r.right > document.documentElement.clientWidth + 1); })"
        ".map((t) => t.textContent)"
    )
    assert outside == []
    assert await page.js("[...document.querySelectorAll('.chart svg')].every((s) => s.getAttribute('aria-label'))")


def test_the_page_works_in_a_browser_on_a_desktop_and_a_phone_in_both_themes(small: Reduction, tmp_path: Path):
    whole = written(tmp_path, "whole", small)
    thin = {name: written(tmp_path, name, *both) for name, both in thin_ones(small).items()}

    async def read() -> list[str]:
        async with browser(tmp_path / "profile") as page:
            backgrounds = []
            for size in (DESKTOP, PHONE):
                for dark in (False, True):
                    await page.open(whole, *size, dark=dark)
                    await look(page, size)
                    backgrounds.append(await page.js("getComputedStyle(document.body).backgroundColor"))
                    if dark is (size == PHONE):
                        await use(page)
                        await look(page, size)
            assert len(set(backgrounds)) == 2
            await page.js("document.querySelector('#theme').click()")
            assert await page.js("document.documentElement.dataset.theme") == "light"
            for path in thin.values():
                await page.open(path, *PHONE)
                await look(page, PHONE)
                last = await page.js("document.querySelector('#layer').max")
                for at in range(int(last) + 1):
                    await page.js(
                        f"(() => {{ const s = document.querySelector('#layer'); s.value = {at};"
                        " s.dispatchEvent(new Event('input')); })()"
                    )
            return page.complaints

    assert asyncio.run(read()) == []


def test_a_page_that_is_broken_is_noticed(tmp_path: Path):
    path = tmp_path / "broken.html"
    path.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('oh'); undefined.x</script>")

    async def read() -> list[str]:
        async with browser(tmp_path / "profile") as page:
            await page.open(path, *PHONE)
            return page.complaints

    complaints = " ".join(asyncio.run(read()))
    assert "x.png" in complaints
    assert "oh" in complaints
    assert "TypeError" in complaints
