"""A run of the tiny model with an axis, and files of published vectors for the same model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from persona_atlas import reduce
from persona_atlas.storage.query.run import Run, open_run

from tiny_models import save_tiny_llama

_LAYERS, _WIDTH = 3, 32


def save_tiny_axis(directory: Path) -> Path:
    """Save a made-up axis of the tiny Llama as published vectors are: three layers, two roles."""
    import torch

    random = np.random.default_rng(5)
    default = random.standard_normal((_LAYERS, _WIDTH))
    roles = default + random.standard_normal((2, _LAYERS, _WIDTH))
    (directory / "role_vectors").mkdir(parents=True)
    files = {"assistant_axis": default - roles.mean(axis=0), "default_vector": default}
    files |= {f"role_vectors/{name}": values for name, values in zip(("pirate", "poet"), roles, strict=True)}
    for name, values in files.items():
        torch.save(torch.tensor(values, dtype=torch.bfloat16), directory / f"{name}.pt")
    return directory


def tiny_run(folder: Path) -> Run:
    """Run a small job of personas on a tiny Llama and reduce it; its model lies beside the store."""
    from persona_atlas import run

    model = save_tiny_llama(folder / "model")
    personas = {"roles": {"names": ["pirate", "poet"], "prompts": 1, "questions": 2}}
    personas["default"] = {"prompts": 1, "questions": 2}
    spec = {
        "model": {"source": str(model)},
        "personas": personas,
        "sampling": {"max_new_tokens": 6},
        "store": {"url": str(folder / "run"), "mantissa_bits": 23},
    }
    run(spec, progress=False)
    reduce(str(folder / "run"), progress=False)
    return open_run(folder / "run")
