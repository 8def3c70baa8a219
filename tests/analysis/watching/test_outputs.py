"""Lines, picture and page of made-up scores: what a reader sees, with everything and with as little as there can be."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.analysis.axis_source import AxisModel, AxisSource
from persona_atlas.analysis.watching.lines import lines_of
from persona_atlas.analysis.watching.page import render_page
from persona_atlas.analysis.watching.picture import write_picture
from persona_atlas.analysis.watching.scores import ReadTurn, ScoredConversation, Watched, ruler_of, score_turns
from persona_atlas.jobs.errors import InputError

from browser import CHROMIUM, Page, browser
from planted_vectors import plant

TRANSFER = "Transferred: the axis is of a/model, and the projections are of another."


def watched(layers: tuple[int, ...] = (2, 1), *, tokens: bool = True, bare: bool = False) -> Watched:
    """Two conversations of five turns; one turn of the assistant has nothing that was read."""
    planted = plant()
    reduction = planted.reduction
    if bare:
        nothing: dict[str, Any] = dict.fromkeys(("projections", "floor_on_axis", "role_vectors"))
        reduction = dataclasses.replace(reduction, **nothing, threshold_labels=())
    ruler = ruler_of(AxisSource.of(reduction, AxisModel("a/model", 4, 16), "runs/made"), layers)
    talks = []
    for number in range(2):
        turns = []
        for place in range(5):
            value = planted.rollouts_NLD[10 * number + place]
            text = f"Turn {place} of talk {number}: <b>& so on</b>"
            kept = (("Turn ", str(place)), np.stack([value, 1.1 * value], axis=1)) if tokens else None
            is_empty = (number, place) == (1, 3)
            role = "assistant" if place % 2 else "user"
            read = (0, None) if is_empty else (2, value)
            turns.append(ReadTurn(place, role, "" if is_empty else text, *read, None if is_empty else kept))
        talks.append(ScoredConversation(number, f"talk </script> {number}", score_turns(ruler, range(4), turns)))
    return Watched(ruler, "another", "content", tuple(talks), TRANSFER)


def test_lines_fit_the_terminal_and_leave_out_what_is_not_known():
    for width in (60, 140):
        for line in lines_of(watched((2,)), width):
            # The numbers are shown whole, whatever the terminal; a text is cut.
            assert len(line) <= max(width, 100)
    *_, empty, last = [line for line in lines_of(watched((2,)), 140) if line]
    assert empty.split() == ["3", "assistant", "0"]
    assert last.endswith("Turn 4 of talk 1: <b>& so on</b>")
    bare = list(lines_of(watched((2,), bare=True), 140))
    assert not any("floor" in line or "z-score" in line or "percentile" in line for line in bare)
    assert any("projection" in line for line in bare)


def test_the_picture_is_written_in_every_format_and_of_many_layers(tmp_path: Path):
    write_picture(watched(), tmp_path / "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    write_picture(watched((2,), tokens=False, bare=True), tmp_path / "bare.svg")
    drawn = (tmp_path / "bare.svg").read_text()
    assert TRANSFER.split(",")[0] in drawn
    assert "z-score among" not in drawn


def test_names_and_texts_of_others_are_shown_as_they_are(tmp_path: Path):
    made = watched((2,), tokens=False)
    names = ("_hidden", "a $\\frac$ of $5", "two\nlines", *(f"talk {number}" for number in range(6)))
    talks = [dataclasses.replace(made.conversations[0], name=name) for name in names]
    many = dataclasses.replace(made, conversations=tuple(talks))
    write_picture(many, tmp_path / "names.svg")
    drawn = (tmp_path / "names.svg").read_text(encoding="utf-8")
    for text in ("_hidden", "a $\\frac$ of $5", "16 of 18 lines"):
        assert text in drawn
    shown = "".join(lines_of(many, 140))
    assert "two lines, layer 2" in shown
    turn = dataclasses.replace(made.conversations[0].turns[0], text="\x1b]0;a title\x07 and \x9b2J")
    talk = dataclasses.replace(made.conversations[0], turns=(turn,))
    shown = "".join(lines_of(dataclasses.replace(made, conversations=(talk,)), 140))
    assert "a title" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


@pytest.mark.parametrize("name", ["talks.xyz", "talks"])
def test_a_picture_of_no_format_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match="no format"):
        write_picture(watched(), tmp_path / name)
    assert not list(tmp_path.iterdir())


async def use(page: Page, path: Path) -> None:
    """Do what a reader does, and check what is shown."""
    await page.open(path, 1280, 900)
    chosen = "document.querySelector('#chosen').textContent"
    assert "talk </script>" in await page.js(chosen)
    count = "document.querySelectorAll('#watch-chart circle.pick').length"
    assert await page.js(count) == 9
    before = await page.js("document.querySelector('#turns tbody tr td.at-layer').textContent")
    box = await page.js(
        "(() => { const r = document.querySelector('#watch-chart circle.pick').getBoundingClientRect();"
        " return [r.left + r.width / 2, r.top + r.height / 2]; })()"
    )
    await page.point(box[0], box[1])
    shown = await page.js("document.querySelector('#tip').hidden ? '' : document.querySelector('#tip').textContent")
    for part in ("(user)", "projection", "z-score", "percentile", "the floor p0.25", "<b>& so on</b>"):
        assert part in shown
    await page.point(box[0], box[1], click=True)
    assert "turn 0 (user)" in await page.js(chosen)
    await page.js("document.querySelector('#watch-chart').focus()")
    await page.press("ArrowRight", 39)
    assert "turn 1 (assistant)" in await page.js(chosen)
    assert await page.js("document.querySelectorAll('#chosen .words span').length") == 2
    for measure in ("centred", "z", "percentile", "projection"):
        await page.js(f"document.querySelector('[data-value={measure}]').click()")
        assert await page.js(count) == 9
    await page.js("document.querySelector('#talks button').click()")
    assert await page.js(count) == 4
    await page.js("document.querySelector('#layer').value = 1; document.querySelector('#layer')"
                  ".dispatchEvent(new Event('input'))")  # fmt: skip
    assert await page.js("document.querySelector('#layer-now').textContent") == "layer 1"
    assert await page.js("document.querySelector('#turns tbody tr td.at-layer').textContent") != before


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)")
def test_the_page_works_in_a_browser_and_asks_for_nothing(tmp_path: Path):
    pages = {"full": watched(), "bare": watched((2,), tokens=False, bare=True)}
    for name, made in pages.items():
        text = render_page(made)
        assert TRANSFER in text
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")

    async def look() -> None:
        async with browser(tmp_path / "profile") as page:
            await use(page, tmp_path / "full.html")
            for name in pages:
                await page.open(tmp_path / f"{name}.html", 390, 844, dark=True)
                assert await page.js("document.documentElement.scrollWidth") == 390
                assert await page.js("document.documentElement.dataset.theme") == "dark"
            assert "nothing to compare with" in await page.js("document.querySelector('#compared').textContent")
            assert not page.complaints

    asyncio.run(look())
