"""Partial results in the store: layers are read back with one request, and damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from persona_atlas.storage.derived.partials import DamagedPartialError, PartialWriter, check_partial, open_partial
from persona_atlas.storage.locations.location import open_location

RANDOM = np.random.default_rng(0)
MEAN, COUNT = RANDOM.standard_normal((5, 3, 16)), RANDOM.standard_normal((5, 7)).astype(np.float32)


def stored(url: str, content: dict[str, object] | None = None) -> bytes:
    writer = PartialWriter()
    for layer in range(5):
        writer.add({"mean": MEAN[layer], "projection": COUNT[layer]})
    data = writer.finish(content or {"units": ["a"]})
    assert open_location(url).create("sums/one", data)
    return data


def test_some_layers_are_read_back(store_url: str):
    stored(store_url)
    location = open_location(store_url)
    found = open_partial(location, "sums/one")
    assert (found.content, found.num_layers) == ({"units": ["a"]}, 5)
    for start, stop in ((0, 5), (1, 3), (4, 5)):
        arrays = found.read(location, start, stop)
        np.testing.assert_array_equal(arrays["mean"], MEAN[start:stop])
        np.testing.assert_array_equal(arrays["projection"], COUNT[start:stop])
        assert arrays["projection"].dtype == np.float32


def test_a_header_of_any_length_is_read(tmp_path: Path):
    content: dict[str, object] = {"units": ["x" * 100_000]}
    stored(str(tmp_path), content)
    found = open_partial(open_location(tmp_path), "sums/one")
    assert found.content == content
    np.testing.assert_array_equal(found.read(open_location(tmp_path), 4, 5)["mean"], MEAN[4:])


def test_every_damaged_byte_and_every_cut_is_found(tmp_path: Path):
    data = stored(str(tmp_path))
    location = open_location(tmp_path)
    check_partial(location, "sums/one")
    for place in range(0, len(data), 7):
        location.write("sums/one", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(DamagedPartialError):
            check_partial(location, "sums/one")
    for length in (0, 3, 8, 60, len(data) - 1):
        location.write("sums/one", data[:length])
        with pytest.raises(DamagedPartialError):
            check_partial(location, "sums/one")
    location.delete(["sums/one"])
    with pytest.raises(DamagedPartialError, match="missing"):
        check_partial(location, "sums/one")
