"""Faults of the machine are told as such, whatever was being read; what a user can mend is not one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import AtlasError, InputError, TransientError
from persona_atlas.jobs.files.text_files import read_text
from persona_atlas.jobs.machine_faults import machine_fault, refuse_machine_fault
from persona_atlas.jobs.sources.reading.read_conversations import read_conversations
from persona_atlas.workers.chat.spans import load_renderer
from persona_atlas.workers.models.checkpoints.checkpoint import open_checkpoint


class OutOfMemoryError(RuntimeError):
    """Named like torch's for a GPU."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, "Input/output error", "config.json"), "config.json"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk is full"),
        (OSError(errno.ESTALE, "Stale file handle"), "Stale"),
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "directory that the process was started in"),
        (MemoryError(), "memory is exhausted"),
        (OutOfMemoryError("CUDA out of memory."), "memory is exhausted"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "memory"),
    ],
)
def test_a_fault_is_told_directly_and_through_other_errors(error: Exception, words: str):
    for wrap in (lambda: error, lambda: caused_by(error), lambda: in_handling(error)):
        fault = machine_fault(wrap())
        assert fault is not None
        assert words in fault.message
        assert fault.hint
        assert (fault.exit_status, fault.retryable) == (1, True)
    with pytest.raises(TransientError):
        refuse_machine_fault(error)


def caused_by(error: Exception) -> Exception:
    try:
        raise ValueError("Can't load the configuration.") from error
    except ValueError as outer:
        return outer


def in_handling(error: Exception) -> Exception:
    try:
        try:
            raise error
        except type(error):
            raise OSError("Can't load the tokenizer.") from None
    except OSError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "job.yaml"),
        PermissionError(errno.EACCES, "Permission denied", "job.yaml"),
        IsADirectoryError(errno.EISDIR, "Is a directory", "job.yaml"),
        OSError("there is no config.json"),
        ValueError("not a number"),
        RuntimeError("size mismatch"),
    ],
)
def test_what_a_user_can_mend_is_no_fault_of_the_machine(error: Exception):
    assert machine_fault(error) is None
    refuse_machine_fault(error)


@pytest.mark.parametrize("read", [open_checkpoint, load_renderer, lambda path: read_text(path / "x", "a job spec")])
def test_a_disk_that_fails_under_a_model_or_a_spec_is_not_wrong_input(
    tiny_model_directory: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(AtlasError) as caught:
        read(tiny_model_directory)
    assert (type(caught.value), caught.value.code) == (TransientError, "machine_fault")


def of_a_folder(folder: Path) -> object:
    return read_conversations(str(folder))


def of_a_file(folder: Path) -> object:
    return read_conversations(str(folder / "talks.jsonl"))


@pytest.mark.parametrize(("read", "broken"), [(of_a_folder, "scandir"), (of_a_file, "open"), (of_a_folder, "stat")])
def test_a_disk_that_fails_under_conversations_is_not_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], broken: str
):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "talks.jsonl").touch()
    places: dict[str, tuple[Any, str]] = {"scandir": (os, "scandir"), "open": (Path, "open"), "stat": (Path, "is_dir")}
    monkeypatch.setattr(*places[broken], fail)
    with pytest.raises(AtlasError) as caught:
        read(tmp_path)
    assert (type(caught.value), caught.value.code) == (TransientError, "machine_fault")


def test_a_missing_configuration_stays_wrong_input(tmp_path: Path):
    with pytest.raises(InputError):
        open_checkpoint(tmp_path)


def test_a_command_whose_directory_was_removed_says_so(tmp_path: Path):
    program = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone');"
        "from persona_atlas.cluster.cli import main; main(['show', 'runs/mine', '--json'])"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert '"code": "machine_fault"' in done.stderr
