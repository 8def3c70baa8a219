"""``persona-atlas compare``: two reductions side by side."""

from __future__ import annotations

import math

import click

from ....analysis.comparison.compare import compare as compare_sides
from ....analysis.comparison.picture import write_picture
from ....analysis.comparison.results import ComparedLayer, Comparison
from ....analysis.comparison.sides import refuse_same, side_of
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.query.run import open_run
from .. import output
from ..options import endpoint_option, json_option, reading_access_options
from ..result_files import picture_to_write

_MOVED_SHOWN = 10
_LAYERS_SHOWN = 16


@click.command()
@click.argument("store_a", metavar="A")
@click.argument("store_b", metavar="B")
@click.option("--layer", type=int, default=None, help="Layer of A to compare in detail; by default the middle one.")
@click.option("--reduction-a", default=None, metavar="ID", help="A stored reduction of A; by default the current one.")
@click.option("--reduction-b", default=None, metavar="ID", help="A stored reduction of B; by default the current one.")
@endpoint_option
@reading_access_options
@click.option("--png", default=None, type=click.Path(dir_okay=False), help="File for a picture over the layers.")
@json_option
def compare(
    store_a: str,
    store_b: str,
    layer: int | None,
    reduction_a: str | None,
    reduction_b: str | None,
    endpoint_url: str | None,
    access: S3Access,
    png: str | None,
    as_json: bool,
) -> None:
    """Compare the reductions of the runs at A and B: two models, judges or checkpoints.

    A and B may be one store with two reductions, as after a second judge.
    """
    picture = picture_to_write(png)
    a = side_of(open_run(store_a, endpoint_url, access), reduction_a, "--reduction-a")
    b = side_of(open_run(store_b, endpoint_url, access), reduction_b, "--reduction-b")
    refuse_same(a, b, "Name another with --reduction-a or --reduction-b.")
    found = compare_sides(a, b, layer)
    if picture is not None:
        # The last parts alone: a picture is shown to others, and paths are this machine's.
        names = [(side.model.rsplit("/", 1)[-1], side.store.rstrip("/").rsplit("/", 1)[-1]) for side in (a, b)]
        title = "\n".join(f"{letter}: {model} ({store})" for letter, (model, store) in zip("AB", names, strict=True))
        write_picture(found, title, picture)
    if as_json:
        sides = {
            name: {"store": side.store, "reduction": side.reduction.reduction_id, "model": side.model}
            for name, side in (("a", a), ("b", b))
        }
        output.document(sides | found.as_dict() | ({} if picture is None else {"png": str(picture)}))
        return
    _print(found)
    if picture is not None:
        output.text(f"Picture: {picture}")


def _print(found: Comparison) -> None:
    at, num_roles = found.at, len(found.roles)
    of_roles = count_of(num_roles, "role")
    of_pairs = f"{count_of(math.comb(num_roles, 2), 'pair')} of {of_roles}"
    output.table(
        f"Layer {at.layer_a} of A and layer {at.layer_b} of B, {count_of(num_roles, 'common role')}",
        ["", ""],
        [
            ["cosine of the axes", _number(at.axis_cosine)],
            ["correlation of projections", _correlation(at.projection_correlation, of_roles)],
            ["correlation of first components", _correlation(at.pc1_correlation, of_roles)],
            ["correlation of similarities of roles", _correlation(at.similarity_correlation, of_pairs)],
            *([["cosine of role vectors, mean and least", _cosines(at)]] if at.role_cosine is not None else []),
            *([["overlap of the first components", _overlap(at)]] if at.subspace_overlap is not None else []),
            *([["default, in z-scores of the roles", _pair(*found.default_z)]] if found.default_z else []),
            *([["roles on the axis of A, mean of A and of B", _pair(*at.roles_on_a)]] if at.roles_on_a else []),
            *([["default on the axis of A", _pair(*at.default_on_a)]] if at.default_on_a else []),
        ],
    )
    if found.components:
        output.table(
            f"Components of A and their partners in B, by how they order the roles (correlations over {of_roles})",
            ["A", "B", "correlation", "sign", "cosine"],
            [
                [
                    f"PC{c.component_a}",
                    f"PC{c.component_b}",
                    f"{c.correlation:.3f}",
                    "-" if c.is_flipped else "+",
                    _number(c.cosine),
                ]
                for c in found.components
            ],
        )
    if found.moved:
        output.table(
            "Roles that moved most along the axis, in z-scores; up is toward the Assistant",
            ["role", "A", "B", "change"],
            [[m.role, f"{m.z_a:+.2f}", f"{m.z_b:+.2f}", f"{m.change:+.2f}"] for m in found.moved[:_MOVED_SHOWN]],
        )
    spread = _spread(found.layers)
    every = f": {len(spread)} of {len(found.layers)}" if len(spread) < len(found.layers) else ""
    output.table(
        f"By layer{every} (r over {of_roles}; of similarities over {of_pairs})",
        ["A", "B", "cosine of axes", "of PC1", "of roles", "r of projections", "r of PC1", "r of similarities"],
        [
            [
                str(of.layer_a),
                str(of.layer_b),
                *map(_number, (of.axis_cosine, _first(of), of.role_cosine)),
                *map(_number, (of.projection_correlation, of.pc1_correlation, of.similarity_correlation)),
            ]
            for of in spread
        ],
    )
    for note in found.notes:
        output.text(note)


def _spread(layers: tuple[ComparedLayer, ...]) -> list[ComparedLayer]:
    """Choose layers to print, evenly spread from the first to the last."""
    step = max(1, -(-len(layers) // _LAYERS_SHOWN))
    chosen = list(layers[::step])
    return chosen if chosen[-1] == layers[-1] else [*chosen, layers[-1]]


def _first(of: ComparedLayer) -> float | None:
    return of.component_cosines[0] if of.component_cosines else None


def _cosines(at: ComparedLayer) -> str:
    return f"{_number(at.role_cosine)} and {_number(at.lowest_role_cosine)}"


def _overlap(at: ComparedLayer) -> str:
    angles = ", ".join(f"{angle:.0f}" for angle in at.principal_angles or ())
    return f"{at.subspace_overlap:.3f} (by chance {at.overlap_by_chance:.3f}); angles {angles} degrees"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _correlation(value: float | None, over: str) -> str:
    return "-" if value is None else f"{_number(value)} over {over}"


def _pair(a: float, b: float) -> str:
    return f"{a:+.2f} and {b:+.2f}"
