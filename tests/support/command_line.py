"""Run commands with ``--json`` and return their output: an object on stdout, or an error object on stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import pytest
from persona_atlas.cluster.cli import main


class Refused(Protocol):
    """Run a command that must fail, check how the error is printed, and return the error object."""

    def __call__(self, *arguments: str | Path, status: int = 2) -> dict[str, Any]: ...


class Answered(Protocol):
    """Run a command, check that stdout holds one JSON object and nothing else, and return it."""

    def __call__(self, *arguments: str | Path, status: int = 0) -> dict[str, Any]: ...


def refused_by(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Make a ``Refused`` for a test."""

    def call(*arguments: str | Path, status: int = 2) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == status, err
        assert out == ""
        assert "Traceback" not in err
        error = json.loads(err.splitlines()[-1])
        assert error["error"]
        return error

    return call


def answered_by(capsys: pytest.CaptureFixture[str]) -> Answered:
    """Make an ``Answered`` for a test."""

    def call(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert ended.value.code == status, err
        assert "Traceback" not in err
        return json.loads(out)

    return call
