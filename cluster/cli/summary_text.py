"""Print the summary of a reduction on the terminal."""

from __future__ import annotations

from ...analysis.summary import Summary
from . import output


def print_summary(found: Summary) -> None:
    """Print the roles at both ends of the axis, the figures of PCA, and the thresholds."""
    if found.roles:
        lines = [[name, f"{value:+.2f}", _z(z, found)] for name, value, z in found.assistant_end]
        if found.default_projection is not None and found.default_z is not None:
            lines.insert(0, ["(the default Assistant)", f"{found.default_projection:+.2f}", _z(found.default_z, found)])
        far = [[name, f"{value:+.2f}", _z(z, found)] for name, value, z in reversed(found.far_end)]
        lines += [["...", "", ""], *far] if far else []
        title = f"The Assistant Axis at layer {found.layer} (higher is nearer the Assistant; zero has no meaning)"
        output.table(title, ["persona", "projection", "z among roles"], lines)
    if found.components_for_70 is not None:
        output.text(f"Components for 70 % of the variance of the role vectors: {found.components_for_70}")
    if found.pc1_axis_cosine is not None and found.pc1_variance is not None:
        output.text(
            f"PC1 at layer {found.layer}: {100 * found.pc1_variance:.0f} % of the variance, "
            f"cosine {found.pc1_axis_cosine:+.3f} with the axis"
        )
    if found.floors:
        shown = ", ".join(f"{label} {value:+.2f}" for label, value in found.floors.items())
        output.text(f"Floors on the axis at layer {found.layer} (percentiles of -axis): {shown}")
    for note in (*found.notes, found.filter_note):
        output.text(note)
    if found.units_done < found.units_planned:
        output.text(f"The run is not complete: these are {found.units_done} of {found.units_planned} units.")


def _z(z: float, found: Summary) -> str:
    # A single role has no standard deviation.
    return f"{z:+.2f}" if len(found.roles) > 1 else "-"
