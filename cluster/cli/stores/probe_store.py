"""``persona-atlas probe-store``: test what an object store supports, before a job relies on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ....jobs.specs.store_spec import S3Access
from ....storage.locations.probe import ProbeResult
from ....storage.locations.probe import probe_store as run_probe
from .. import output
from ..options import access_options, endpoint_option, json_option

_WORD = {True: "yes", False: "NO", None: "not seen"}


@click.command("probe-store")
@click.argument("url")
@endpoint_option
@access_options
@json_option
def probe_store(url: str, endpoint_url: str | None, access: S3Access, as_json: bool) -> int:
    """Test the store at URL: writes, listings, racing conditional writes, byte ranges, and a wrong secret.

    Writes a few objects under a name of their own and deletes them. Exit status 1 if the store cannot hold a run.
    """
    findings = run_probe(url, endpoint_url, access)
    is_fit = all(finding.holds for finding in findings if finding.is_needed)
    consequences = list(dict.fromkeys(finding.consequence for finding in findings if finding.consequence))
    if as_json:
        document = {"fit": is_fit, "findings": [_as_dict(finding) for finding in findings]}
        output.document(document | {"consequences": consequences})
    else:
        lines = [[finding.name, _WORD[finding.holds], finding.message] for finding in findings]
        output.table(f"Tests of {url}", ["test", "holds", "meaning"], lines)
        for consequence in consequences:
            output.text(consequence)
        output.text("This store can hold runs." if is_fit else "This store cannot hold runs.")
    return 0 if is_fit else 1


def _as_dict(finding: ProbeResult) -> dict[str, Any]:
    fields = asdict(finding)
    # ``what`` is the key of the message in ``--json`` output, which must not change.
    return {"what" if key == "message" else key: value for key, value in fields.items()}
