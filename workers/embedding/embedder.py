"""Embed texts with a sentence-transformers model, by transformers alone. Axes: N texts, T tokens, E width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError, UnitError
from ..models.quiet_loading import without_progress_bar
from .embedder_files import FIELD, EmbedderFiles

if TYPE_CHECKING:
    import torch

_BATCH = 32


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Texts as vectors.

    Attributes:
        values_NE: float32 vectors, in the order of the texts.
        num_cut: Texts that were longer than the model reads, of which the end is not in the vector.
        max_tokens: Tokens that it reads, special ones included.
    """

    values_NE: npt.NDArray[np.float32]
    num_cut: int
    max_tokens: int


class Embedder:
    """A loaded model of sentence-transformers; runs on a GPU if there is one, else on the CPU, in float32.

    Args:
        files: The model, as ``find_embedder`` returns it.

    Raises:
        InputError: transformers cannot load it.
    """

    def __init__(self, files: EmbedderFiles) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._files = files
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(files.directory, trust_remote_code=False)
            with without_progress_bar():
                model: Any = AutoModel.from_pretrained(files.directory, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{files.directory} cannot be loaded: {' '.join(str(error).split())[:300]}.",
                code="no_embedder",
                field=FIELD,
                hint="Is the model whole, with safetensors weights and a tokenizer?",
            ) from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.to(self._device).eval()
        self._max_tokens = self._limit(model.config)

    def _limit(self, config: Any) -> int:
        own = self._tokenizer.model_max_length
        positions = getattr(config, "max_position_embeddings", None) or own
        return int(self._files.max_tokens or min(own, positions))

    def embed(self, texts: Sequence[str], show: Callable[[int, int], None] | None = None) -> Embeddings:
        """Embed texts.

        Args:
            texts: The texts; blanks around them are removed, as the library does.
            show: Called after each batch with the number of texts done and of all; None for nothing.

        Raises:
            UnitError: A value is not finite.
        """
        import torch

        read = [self._files.prompt + text.strip() for text in texts]
        read = [text.lower() for text in read] if self._files.lower_case else read
        lengths = [len(ids) for ids in self._tokenizer(read, verbose=False)["input_ids"]] if read else []
        # Texts of like length share a batch, so that little of it is padding.
        order = np.argsort(lengths, kind="stable").tolist()
        values_NE = np.empty((len(read), 0), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                places = order[start : start + _BATCH]
                vectors_BE = self._pooled([read[place] for place in places]).float().cpu().numpy()
                if not values_NE.size:
                    values_NE = np.empty((len(read), vectors_BE.shape[1]), np.float32)
                values_NE[places] = vectors_BE
                if show is not None:
                    show(min(start + _BATCH, len(order)), len(order))
        if not np.isfinite(values_NE).all():
            raise UnitError("an embedding is not finite.", code="not_finite")
        return Embeddings(values_NE, sum(length > self._max_tokens for length in lengths), self._max_tokens)

    def _pooled(self, texts: list[str]) -> torch.Tensor:
        import torch

        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        states_BTE = self._model(**inputs).last_hidden_state
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1)
        if self._files.pooling == "mean":
            pooled_BE = (states_BTE * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1).clamp(min=1)
        elif self._files.pooling == "max":
            pooled_BE = states_BTE.masked_fill(mask_BT1 == 0, -torch.inf).amax(dim=1)
        else:
            # The first token that is no padding, on whichever side the tokenizer pads.
            first_B = mask_BT1[..., 0].argmax(dim=1)
            pooled_BE = states_BTE[torch.arange(len(texts), device=states_BTE.device), first_B]
        return torch.nn.functional.normalize(pooled_BE, dim=1) if self._files.normalised else pooled_BE
