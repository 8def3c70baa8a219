"""The dataset card of a shared store: ``README.md``, which the hub shows on the dataset's page."""

from __future__ import annotations

from ...jobs.wording import count_of
from ..query.run import Run
from ..query.vectors import Vectors, VectorSet
from .objects import Share

CARD = "README.md"


def dataset_card(vectors: Vectors, url: str, share: Share) -> str:
    """Write the card of a store. Its licence is left to the owner of the dataset.

    Args:
        vectors: The store.
        url: URL of the dataset.
        share: What of the store is shared.
    """
    reduction = vectors.reduction
    contents = [f"- model: `{vectors.model_name}` ({count_of(vectors.n_layers, 'layer')} x {vectors.d_model})"]
    if isinstance(vectors, Run):
        contents.append(f"- rollouts: {vectors.index.num_rows:,} ({vectors.completeness})")
        contents.append(
            "- activations and texts: in this dataset"
            if share == "all"
            else "- activations and texts: not in this dataset"
        )
    if isinstance(vectors, VectorSet):
        contents.append(f"- imported from: {vectors.record.source}")
    if reduction is not None:
        roles, traits = count_of(len(reduction.role_names), "role"), count_of(len(reduction.trait_names), "trait")
        contents.append(f"- vectors: {roles}, {traits}")
        contents.append(f"- layers: {', '.join(map(str, reduction.layers))}")
        contents.append(f"- rollouts that count: {reduction.facts.get('rollout_filter', 'all')}")
        contents.append("- the Assistant Axis points toward the Assistant; thresholds are in both signs, and say which")
    opener = "open_vectors" if isinstance(vectors, VectorSet) else "open_run"
    return f"""---
# Add a licence: license: ...
tags:
- persona-atlas
- activations
- interpretability
---

# Personas of {vectors.model_name}

A store of Persona Atlas: vectors of the roles and traits of a language model, taken from its residual stream, after the
method of Lu, Gallagher, Michala, Fish and Lindsey, *The Assistant Axis* (arXiv 2601.10387).

{chr(10).join(contents)}

```python
from persona_atlas import {opener}

reduction = {opener}("{url}").reduction
```

```sh
persona-atlas show {url}
persona-atlas pull {url} my-copy
```

Everything is plain Zarr v3, Parquet and JSON.
"""
