#!/usr/bin/env bash
# Build the wheel and run the tests that a wrong wheel would fail, where the checkout cannot be seen: every module imports
# and its examples run, the pages' commands and blocks of Python, the catalog, the tables of devices and models.
# Usage: tests/wheel_test.sh PYTHON    (an environment with the dependencies and the dev extra)
set -euo pipefail
python=$1
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --wheel --outdir "$work/dist" "$root" > "$work/build.log" 2>&1 || { tail -20 "$work/build.log"; exit 1; }
wheel=$(ls "$work"/dist/*.whl)
# Only the package: nothing of the tests, the docs or the root may land in site-packages.
"$python" - "$wheel" <<'CHECK'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
tops = {name.split("/")[0] for name in names}
assert {t for t in tops if not t.endswith(".dist-info")} == {"persona_atlas"}, tops
at_root = {n for n in names if n.startswith("persona_atlas/") and n.count("/") == 1}
assert at_root == {"persona_atlas/__init__.py", "persona_atlas/py.typed"}, at_root
yaml_files = [n for n in names if n.endswith(".yaml")]
# Of the catalog; rubrics of sweeps; of devices and of known models; topics of drift, neutral questions, prefills.
assert len(yaml_files) == 275 + 240 + 3 + 2 + 2 + 6, len(yaml_files)
# Script and style of the report and of watched conversations.
assert sum(n.endswith((".js", ".css")) for n in names) == 10, names
CHECK
"$python" -m pip install --quiet --no-deps --target "$work/site" "$wheel"
cp -r "$root/tests" "$root/pyproject.toml" "$root/examples" "$root/docs" "$root"/*.md "$work/"
cd "$work"
# Before the editable install's finder: PYTHONPATH comes first.
export PYTHONPATH=$work/site
"$python" -c "import persona_atlas, sys; assert persona_atlas.__file__.startswith(sys.argv[1]), persona_atlas.__file__" "$work/site"
# The pages link to and name the folders of the checkout, which is not here.
"$python" -m pytest -q -n auto -m "not ray and not model and not s3 and not slow" tests/test_docs.py tests/test_doctests.py \
  tests/test_packaging.py \
  tests/jobs/test_catalog.py tests/jobs/test_catalog_content.py tests/jobs/dialogues tests/jobs/test_plan.py tests/jobs/sizing \
  --deselect tests/test_docs.py::test_links_between_the_pages_lead_somewhere \
  --deselect tests/test_docs.py::test_every_file_that_a_page_names_is_there
