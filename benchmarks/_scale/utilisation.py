"""How busy simulated workers were: figures and a picture of utilisation over time.

A worker is busy while any rollout of its batch runs. Its batch is full while all slots are taken.
"""

from __future__ import annotations

import heapq
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from _scale.simulation import Seconds, Simulated

_BINS = 400
_WIDTH, _HEIGHT = 1000, 720
_LONG_ENOUGH = 0.1
"""A worker that was there for a smaller share of the job does not count for the least busy one."""


@dataclass(frozen=True, slots=True)
class Busyness:
    """Shares of their time that workers were busy, between 0 and 1.

    Attributes:
        mean: Busy share of all workers' time while there were units to assign.
        least: The same of the least busy worker.
        idle_at_end: Idle share of all workers' time, after the last unit was assigned.
        tail: Share of the job's length from when the first worker ran dry for good to the last commit.
        full: Share of the batches' slots that were taken while there were units to assign.
    """

    mean: float
    least: float
    idle_at_end: float
    tail: float
    full: float


def busyness(found: Simulated) -> Busyness:
    """Compute the figures of a simulation.

    Args:
        found: The simulation.
    """
    dealt, alive_s, before_s = found.assigned_s, 0.0, 0.0
    idle_before_s = idle_after_s = row_s = 0.0
    least, first_idle = 1.0, found.length_s
    for ready, gone, began, ended in zip(found.ready_at, found.gone_at, found.began, found.ended, strict=True):
        free_from, free_until = idle_spans(float(ready), float(gone), began, ended)
        before = max(0.0, min(gone, dealt) - ready)
        idle = np.sum(np.minimum(free_until, dealt) - np.minimum(free_from, dealt))
        idle_before_s += idle
        idle_after_s += np.sum(free_until - free_from) - idle
        before_s += before
        alive_s += gone - ready
        row_s += np.sum(np.minimum(ended, dealt) - np.minimum(began, np.minimum(ended, dealt)))
        if before > _LONG_ENOUGH * found.length_s:
            least = min(least, 1 - idle / before)
        if gone >= found.length_s and len(ended):
            first_idle = min(first_idle, max(ended.max(), dealt))
    return Busyness(
        mean=float(1 - idle_before_s / before_s),
        least=float(least),
        idle_at_end=float(idle_after_s / alive_s),
        tail=float(1 - first_idle / found.length_s),
        full=float(row_s / before_s / found.rows),
    )


def idle_spans(ready: float, gone: float, began: Seconds, ended: Seconds) -> tuple[Seconds, Seconds]:
    """Give the spans in which one worker had nothing to do: their starts and their ends, seconds.

    Example:
        >>> idle_spans(0.0, 10.0, np.array([1.0, 2.0, 6.0]), np.array([3.0, 5.0, 9.0]))
        (array([0., 5., 9.]), array([ 1.,  6., 10.]))
    """
    ran = began < ended
    order = np.argsort(began[ran])
    began, ended = began[ran][order], ended[ran][order]
    free_from = np.maximum.accumulate(np.concatenate([[ready], ended]))
    free_until = np.concatenate([began, [gone]])
    idle = free_until > free_from
    return free_from[idle], free_until[idle]


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a scheduler would reach that knows in advance how long each worker lives and each response is.

    Attributes:
        length_s: Length of the job, seconds.
        idle_at_end: Share of all workers' time in which those that were there at the end had nothing left to do.
    """

    length_s: float
    idle_at_end: float


def foreseen(found: Simulated) -> Foreseen:
    """Assign each unit to the worker that can begin it first, if it lives to finish it; nothing is requested or lost.

    Args:
        found: The simulation, for its workers, units and losses.
    """
    queue = [(float(ready), number) for number, ready in enumerate(found.ready_at)]
    places = [[float(ready)] * found.rows for ready in found.ready_at]
    heapq.heapify(queue)
    ends = found.ready_at.copy()
    length_s = 0.0
    for unit_seconds in found.unit_seconds:
        while True:
            _, number = heapq.heappop(queue)
            tried, end = list(places[number]), 0.0
            for seconds in unit_seconds:
                done = tried[0] + seconds
                heapq.heapreplace(tried, done)
                end = max(end, done)
            # Workers that were there at the end would have lived on.
            if end <= found.gone_at[number] or found.gone_at[number] >= found.length_s:
                break
        places[number] = tried
        heapq.heappush(queue, (tried[0], number))
        ends[number] = max(ends[number], end)
        length_s = max(length_s, end)
    stays = found.gone_at >= found.length_s
    # A worker that joined when all was done does not count.
    idle_s = np.maximum(length_s - ends, 0.0)
    alive_s = np.maximum(np.where(stays, length_s, np.minimum(found.gone_at, length_s)) - found.ready_at, 0.0)
    return Foreseen(length_s, float(np.sum(idle_s, where=stays) / np.sum(alive_s)))


def over_time(found: Simulated) -> tuple[Seconds, dict[str, npt.NDArray[np.float64]]]:
    """Sample the job at equal intervals.

    Args:
        found: The simulation.

    Returns:
        The moments in seconds; and for each the workers alive and busy, the taken slots in full batches, and the units
        committed so far.
    """
    moments = np.linspace(0, found.length_s, _BINS)
    alive = _count(moments, found.ready_at, found.gone_at)
    busy = alive.copy()
    taken = np.zeros(_BINS)
    for ready, gone, began, ended in zip(found.ready_at, found.gone_at, found.began, found.ended, strict=True):
        busy -= _count(moments, *idle_spans(float(ready), float(gone), began, ended))
        ran = began < ended
        taken += _count(moments, began[ran], ended[ran])
    done = np.searchsorted(np.sort(found.committed_at), moments, side="right")
    return moments, {"alive": alive, "busy": busy, "taken": taken / found.rows, "done": done.astype(float)}


def _count(moments: Seconds, began: Seconds, ended: Seconds) -> npt.NDArray[np.float64]:
    begun = np.searchsorted(np.sort(began), moments, side="right")
    return (begun - np.searchsorted(np.sort(ended), moments, side="right")).astype(float)


def draw(found: dict[str, Simulated], path: Path) -> Path | None:
    """Draw each simulation into one HTML file, and where Chromium is installed into a PNG beside it.

    Args:
        found: By name.
        path: Of the HTML file.

    Returns:
        The PNG's path, if there is one.
    """
    figure = make_subplots(rows=len(found), cols=1, subplot_titles=list(found), vertical_spacing=0.12)
    styles = {
        "alive": ("workers alive", "#9aa5b1", "dot"),
        "busy": ("workers with a rollout to run", "#1f6feb", "solid"),
        "taken": ("full batches' worth of rollouts", "#d97706", "solid"),
    }
    for row, simulated in enumerate(found.values(), 1):
        moments, counts = over_time(simulated)
        in_minutes = simulated.length_s > 600
        times = moments / 60 if in_minutes else moments
        for name, (label, color, dash) in styles.items():
            line = {"color": color, "dash": dash, "width": 1.8}
            trace = go.Scatter(x=times, y=counts[name], name=label, line=line, showlegend=row == 1)
            figure.add_trace(trace, row=row, col=1)
        share = counts["done"] / simulated.units * counts["alive"].max()
        line = {"color": "#2e7d32", "width": 1.8}
        done = go.Scatter(x=times, y=share, name="units committed, of all", line=line, showlegend=row == 1)
        figure.add_trace(done, row=row, col=1)
        unit = "minutes" if in_minutes else "seconds"
        figure.update_xaxes(title_text=f"{unit} since the first worker was ready", row=row, col=1)
        figure.update_yaxes(title_text="workers", rangemode="tozero", row=row, col=1)
    figure.update_layout(
        template="plotly_white",
        width=_WIDTH,
        height=_HEIGHT,
        margin={"l": 70, "r": 20, "t": 70, "b": 60},
        legend={"orientation": "h", "y": 1.06, "yanchor": "bottom"},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})
    return _photograph(path)


def _photograph(path: Path) -> Path | None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        return None
    picture = path.with_suffix(".png")
    size = f"--window-size={_WIDTH + 20},{_HEIGHT + 20}"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
    command += ["--virtual-time-budget=10000", f"--screenshot={picture}", path.absolute().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return picture
