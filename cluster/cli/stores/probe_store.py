"""``persona-atlas probe-store``: try what an object store really does, before a job stands on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ....storage.locations.probe import ProbeResult
from ....storage.locations.probe import probe_store as try_store
from .. import output
from ..options import endpoint_option, json_option

_WORD = {True: "yes", False: "NO", None: "not seen"}


@click.command("probe-store")
@click.argument("url")
@endpoint_option
@json_option
def probe_store(url: str, endpoint_url: str | None, as_json: bool) -> int:
    """Try the store at URL: writing, listing, conditional writes that race, ranges, a wrong secret.

    Writes a few objects under a name of its own and deletes them. Exit status 1 when no run can be kept there.
    """
    findings = try_store(url, endpoint_url)
    is_fit = all(finding.holds for finding in findings if finding.is_needed)
    consequences = list(dict.fromkeys(finding.consequence for finding in findings if finding.consequence))
    if as_json:
        facts = [_as_dict(finding) for finding in findings]
        output.document({"fit": is_fit, "findings": facts, "consequences": consequences})
    else:
        lines = [[finding.name, _WORD[finding.holds], finding.message] for finding in findings]
        output.table(f"What {url} does", ["", "", ""], lines)
        for consequence in consequences:
            output.text(consequence)
        output.text("Runs can be kept here." if is_fit else "Runs cannot be kept here.")
    return 0 if is_fit else 1


def _as_dict(finding: ProbeResult) -> dict[str, Any]:
    facts = asdict(finding)
    # The name that ``--json`` has always had for it.
    return {"what" if key == "message" else key: value for key, value in facts.items()}
