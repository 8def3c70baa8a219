"""Which tensors of a checkpoint become which parameters of a model, and how, by transformers' own rules.

Most parameters are one tensor of the files under the same or another name. Some are made of several: the experts of a
mixture are stored one by one and computed with as one tensor. transformers has these rules in its loader, which loads a
whole model; here they are found once, when the model is built, and applied to one layer at a time. The only module that
knows transformers' loader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from ....jobs.errors import InputError
from .files import TensorSource


@dataclass(frozen=True, eq=False, slots=True)
class Recipe:
    """How parameters are made of tensors of a checkpoint.

    Attributes:
        targets: Names of the parameters.
        tensors: Names of the tensors.
        converter: transformers' conversion of the tensors, by the pattern that each of their names matched; None where
            the only tensor is the only parameter.
        patterns: These patterns, in the order of ``tensors``.
    """

    targets: tuple[str, ...]
    tensors: tuple[str, ...]
    converter: Any = None
    patterns: tuple[str, ...] = ()

    def make(self, tensors: Sequence[torch.Tensor], model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Make the parameters.

        Args:
            tensors: The tensors, in the order of ``self.tensors``.
            model: The model, whose configuration some conversions read.

        Yields:
            The name of each parameter and its value, which may be one of the tensors itself.
        """
        if self.converter is None:
            yield self.targets[0], tensors[0]
            return
        converter = deepcopy(self.converter)
        first = self.targets[0]
        for name, pattern, tensor in zip(self.tensors, self.patterns, tensors, strict=True):
            converter.add_tensor(first, name, pattern, tensor)
        made = cast("dict[str, Any]", converter.convert(first, model=model, config=model.config))
        for name, value in made.items():
            yield name, value[0] if isinstance(value, list) else value


def recipes_of(model: Any, source: TensorSource) -> list[Recipe]:
    """Find how the parameters of a model, and its buffers that are stored, are made of the tensors of a checkpoint.

    Args:
        model: The model; its parameters may be on the meta device.
        source: The tensors.

    Returns:
        A recipe for everything that the checkpoint has of the model. What the model does not have is left out.
    """
    entries = cast("list[Any]", get_model_conversion_mapping(model))
    renamings = [entry for entry in entries if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in entries if isinstance(entry, WeightConverter)]
    by_pattern: dict[str, Any] = {pattern: one for one in converters for pattern in one.source_patterns}
    own, prefix = model.state_dict(), model.base_model_prefix
    recipes: list[Recipe] = []
    joined: dict[str, list[tuple[str, str]]] = {}
    # In the loader's order, because some conversions number what they find.
    for name in sorted(source.names(), key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:
            target, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=own)
        if target not in own:
            continue
        if pattern is None:
            recipes.append(Recipe((target,), (name,)))
        else:
            joined.setdefault(target, []).append((name, pattern))
    for target, found in joined.items():
        names, patterns = zip(*found, strict=True)
        recipes.append(_converted(target, names, patterns, by_pattern[patterns[0]], source, model))
    return recipes


def _converted(
    target: str, names: tuple[str, ...], patterns: tuple[str, ...], converter: Any, source: TensorSource, model: Any
) -> Recipe:
    """Find which parameters a conversion makes, by applying it to tensors without values."""
    recipe = Recipe((target,), names, converter, patterns)
    made = recipe.make([source.tensor(name).to("meta") for name in names], model)
    return Recipe(tuple(name for name, _ in made), names, converter, patterns)


def require_all(recipes: Iterable[Recipe], needed: Iterable[str], place: str) -> None:
    """Check that every parameter that is needed can be made.

    Args:
        recipes: How parameters are made.
        needed: Names of the parameters.
        place: The checkpoint, for the message.

    Raises:
        InputError: One cannot.
    """
    made = {target for recipe in recipes for target in recipe.targets}
    missing = sorted(set(needed) - made)
    if missing:
        raise InputError(
            f"the weights in {place} lack {missing[0]}"
            f"{f' and {len(missing) - 1} more tensors' if len(missing) > 1 else ''} that config.json asks for.",
            code="model_not_loaded",
            field="model.source",
            hint="Fetch configuration and weights again, from the same place.",
        )


def by_layer(recipes: Iterable[Recipe], layer_of: Mapping[str, int]) -> dict[int | None, list[Recipe]]:
    """Group recipes by the decoder layer whose parameters they make; None for what belongs to none.

    Args:
        recipes: The recipes.
        layer_of: The layer of each parameter that belongs to one.
    """
    grouped: dict[int | None, list[Recipe]] = {}
    for recipe in recipes:
        grouped.setdefault(layer_of.get(recipe.targets[0]), []).append(recipe)
    return grouped
