"""Random published vectors in a directory, with an axis, of a model that they do not name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch


def save_published_axis(folder: Path, num_layers: int, d_model: int) -> Path:
    """Save them, without norms and thresholds; the same every time."""
    draw = np.random.default_rng(1)
    default_LD, *roles_PLD = draw.standard_normal((4, num_layers, d_model))
    vectors = {"assistant_axis": default_LD - np.mean(roles_PLD, axis=0), "default_vector": default_LD}
    vectors |= {f"role_vectors/{name}": vector for name, vector in zip("abc", roles_PLD, strict=True)}
    (folder / "role_vectors").mkdir(parents=True)
    for name, vector_LD in vectors.items():
        torch.save(torch.from_numpy(vector_LD), folder / f"{name}.pt")
    return folder
