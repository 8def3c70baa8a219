"""Tables are read in the calling thread: Arrow threads that outlive the read may abort an ending process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import psutil
import pyarrow as pa
from persona_atlas.storage.format.parquet import from_parquet, to_parquet

data = to_parquet(pa.table({"row": list(range(5000)), "persona": ["pirate"] * 5000}))
before = psutil.Process().num_threads()
assert from_parquet(data).num_rows == 5000
assert from_parquet(data, ["row"]).column_names == ["row"]
print(psutil.Process().num_threads() - before)
"""


def test_reading_a_table_starts_no_thread():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
