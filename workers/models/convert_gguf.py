"""Turn a GGUF file into a directory of safetensors and tokenizer files. Run as a process of its own.

Usage: python -m persona_atlas.workers.models.convert_gguf FILE.gguf TARGET_DIRECTORY
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any


def convert(gguf: Path, target: Path) -> None:
    """Dequantise to float32 and write beside the target, then rename: the target is whole or absent.

    Args:
        gguf: The file.
        target: A directory that does not exist yet.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config: Any = loaded.config
        # A model that was quantised once refuses to be saved; the same weights in a new one do not.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(loaded.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = loaded.generation_config
        made = Path(folder) / "model"
        plain.save_pretrained(made)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(made)
        try:
            made.rename(target)
        except OSError:
            # Another process may have been quicker; what it made is the same.
            if not target.is_dir():
                raise


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
