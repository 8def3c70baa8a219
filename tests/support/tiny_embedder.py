"""A random sentence-transformers model of two layers, saved as that library saves one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_models import SPECIAL, save_tokenizer

WIDTH = 16


def save_tiny_embedder(
    directory: Path, *, pooling: str = "mean", normalised: bool = True, limits: dict[str, Any] | None = None
) -> Path:
    """Save a random BERT with a byte tokenizer, and the files that say how its tokens become one vector."""
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = BertModel(config)
        # As made, all tokens are nearly alike.
        torch.nn.init.normal_(model.embeddings.word_embeddings.weight, std=1.0)
    model.save_pretrained(directory)
    save_tokenizer(directory, None)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalised else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text(json.dumps(limits or {"max_seq_length": 24}))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    flags = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
    pooled = {flag: name == pooling for name, flag in flags.items()}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH} | pooled))
    return directory
