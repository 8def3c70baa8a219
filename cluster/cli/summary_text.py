"""Print the summary of a reduction on the terminal."""

from __future__ import annotations

from ...analysis.summary import RankedRole, Summary
from . import output


def print_summary(found: Summary) -> None:
    """Print the roles at both ends of the axis, the figures of PCA, and the thresholds."""
    if found.roles:
        columns, lines = (
            ["persona", "projection", "z among roles"],
            [_line(role, found) for role in found.assistant_end],
        )
        if found.default_projection is not None and found.default_z is not None:
            default = RankedRole(
                "(the default Assistant)",
                found.default_projection,
                found.default_z,
                found.default_rollouts,
                found.default_interval,
            )
            lines.insert(0, _line(default, found))
        far = [_line(role, found) for role in reversed(found.far_end)]
        is_elided = len(found.assistant_end) + len(far) < len(found.roles)
        lines += [["..."] + [""] * (len(lines[0]) - 1)] if is_elided else []
        lines += far
        columns += ["95 % interval"] if _has_intervals(found) else []
        columns += ["n"] if _has_counts(found) else []
        title = f"The Assistant Axis at layer {found.layer} (higher is nearer the Assistant; zero has no meaning)"
        output.table(title, columns, lines)
    agreement = []
    if found.split_half is not None:
        agreement.append(f"{found.split_half:+.3f} between two halves of the questions")
    if found.axis_interval is not None:
        agreement.append("{:+.3f} to {:+.3f} with other samples of roles (95 %)".format(*found.axis_interval))
    if agreement:
        output.text(f"Cosine of the axis at layer {found.layer}: {', '.join(agreement)}")
    if found.components_for_70 is not None:
        output.text(f"Components for 70 % of the variance of the role vectors: {found.components_for_70}")
    if found.components_for_70_by_category is not None:
        points = " and ".join(f"{number} {name}" for name, number in found.category_vectors.items())
        output.text(
            f"Components for 70 % of the variance of the vectors of {points} played roles together (the paper's "
            f"points): {found.components_for_70_by_category}"
        )
    if found.pc1_axis_cosine is not None and found.pc1_variance is not None:
        output.text(
            f"PC1 at layer {found.layer}: {100 * found.pc1_variance:.0f} % of the variance, "
            f"cosine {found.pc1_axis_cosine:+.3f} with the axis"
        )
    if found.floors:
        shown = ", ".join(f"{label} {value:+.2f}" for label, value in found.floors.items())
        output.text(
            f"Floors on the axis at layer {found.layer} (percentiles of -axis; caps there are minus these): {shown}"
        )
    for note in (*found.trust, *found.notes, found.filter_note):
        output.text(note)
    if found.units_done < found.units_planned:
        output.text(f"The run is not complete: these are {found.units_done} of {found.units_planned} units.")


def _line(role: RankedRole, found: Summary) -> list[str]:
    # A single role has no standard deviation.
    z = f"{role.z_score:+.2f}" if len(found.roles) > 1 else "-"
    line = [role.name, f"{role.projection:+.2f}", z]
    if _has_intervals(found):
        line.append("" if role.interval is None else f"{role.interval[0]:+.2f} to {role.interval[1]:+.2f}")
    if _has_counts(found):
        line.append("" if role.rollouts is None else f"{role.rollouts:,}")
    return line


def _has_intervals(found: Summary) -> bool:
    return any(role.interval is not None for role in found.roles)


def _has_counts(found: Summary) -> bool:
    return any(role.rollouts is not None for role in found.roles)
