"""Convert a GGUF file to a directory of safetensors and tokenizer files. Run as a separate process.

Usage: python -m persona_atlas.workers.models.convert_gguf FILE.gguf TARGET_DIRECTORY
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from .quiet_loading import without_progress_bar


def convert(gguf: Path, target: Path) -> None:
    """Dequantise a model to float32; written to a temporary folder and renamed, so the target is complete or absent.

    Args:
        gguf: The file.
        target: A directory that does not exist yet.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        with without_progress_bar():
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
            )
        config: Any = loaded.config
        # transformers refuses to save a model that was loaded from quantised weights, so a new model gets the weights.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = loaded.generation_config
        made = Path(folder) / "model"
        plain.save_pretrained(made)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        tokenizer.save_pretrained(made)
        try:
            made.rename(target)
        except OSError:
            # Another process may have converted it first; the result is the same.
            if not target.is_dir():
                raise


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
