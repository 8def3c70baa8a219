"""Everything about the engines that only a GPU can tell, in one command of under eight minutes.

    python3 benchmarks/gpu.py [--json FILE] [--only PART,...] [--minutes 8] [--cpu]

The parts, in the order in which they run: ``ceilings`` (copy bandwidth, bf16 matrix rate), ``conformance`` (every
family, both modes, every hook point and interventions against plain passes, float32 and bf16), ``prefill``,
``generation``, ``decode`` and ``canary`` (a random model of the shape of Mistral 7B, made on the device), ``memory``
(planned against measured, and running out of it), ``streaming`` (weights that are loaded layer by layer from the host's
memory: the shape of a model of 32B parameters in a third of the device's memory, and one block of a model of 70B),
``slots`` (the sums of the vLLM engine, without vLLM). A part that fails prints its error and stops no other; one for
which no time is left is named as skipped. Without a GPU, or with ``--cpu``, the same code runs at small sizes: that
shows that the script works, and its figures mean nothing.

It needs no network, no Ray, no store and no installed package of this project: torch, transformers, tokenizers,
safetensors, numpy, jinja2, psutil, pyyaml, rich and pydantic are enough. Of these, an image made for torch may lack
pydantic; then five wheels have to be brought: pydantic, pydantic-core, annotated-types, typing-inspection and
typing-extensions. It changes no setting of the card.

Exit status: 1 if a part failed or a goal was not met; the goals count on a GPU only, conformance everywhere.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_importable() -> None:
    """Put the package of this checkout, the families of the tests and this folder on the path."""
    links = ROOT / ".links"
    if find_spec("persona_atlas") is None:
        links.mkdir(exist_ok=True)
        link = links / "persona_atlas"
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to("..")
    sys.path[:0] = [str(links), str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts.

    Args:
        arguments: Command-line options; None: those of this process.

    Returns:
        The exit status: 1 if a part failed or a goal was not met.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # As workers set it.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    make_importable()
    from _gpu.run import PARTS, Choice, run

    parser = argparse.ArgumentParser(description="What only a GPU can tell about the engines.")
    parser.add_argument("--json", type=Path, help="file to write after every part, with all figures so far")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to run, of {','.join(PARTS)}")
    parser.add_argument("--families", default="", help="families of the part conformance; all by default")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts; the rest is skipped")
    parser.add_argument("--cpu", action="store_true", help="the CPU form, also where there is a GPU")
    parser.add_argument("--resume", action="store_true", help="add to the parts that --json FILE has, and skip those")
    options = parser.parse_args(arguments)
    asked = [name for name in options.only.split(",") if name]
    unknown = sorted(set(asked) - set(PARTS))
    if unknown:
        parser.error(f"--only: no part {', '.join(unknown)}; choose of {', '.join(PARTS)}")
    if options.resume and options.json is None:
        parser.error("--resume needs --json FILE")
    families = tuple(name for name in options.families.split(",") if name)
    return run(Choice(tuple(asked), families, options.minutes * 60, options.cpu, options.json, options.resume))


if __name__ == "__main__":
    sys.exit(main())
