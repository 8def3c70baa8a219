"""What the command line answers: a document on stdout, or an error object on stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import pytest
from persona_atlas.cluster.cli import main


class Refused(Protocol):
    """Run a command that must be refused; gives the error object, having checked how it was said."""

    def __call__(self, *arguments: str | Path, status: int = 2) -> dict[str, Any]: ...


class Answered(Protocol):
    """Run a command with ``--json``; gives the document, having checked that it is all of stdout."""

    def __call__(self, *arguments: str | Path, status: int = 0) -> dict[str, Any]: ...


def refused_by(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Make a ``Refused``."""

    def call(*arguments: str | Path, status: int = 2) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == status, err
        assert out == ""
        assert "Traceback" not in err
        facts = json.loads(err.splitlines()[-1])
        assert facts["error"]
        return facts

    return call


def answered_by(capsys: pytest.CaptureFixture[str]) -> Answered:
    """Make an ``Answered``."""

    def call(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == status, err
        assert "Traceback" not in err
        return json.loads(out)

    return call
