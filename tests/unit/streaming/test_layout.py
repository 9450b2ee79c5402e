from __future__ import annotations

import json
import re
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from popxl.errors import PopxlValueError, StreamingMemoryError
from popxl.runtime.streaming import BufferSpec
from popxl.runtime.streaming.layout import (
    decode_manifest,
    describe_difference,
    encode_manifest,
    slab_bytes,
    slab_name,
    slot_bytes,
    slot_offset,
)
from popxl.runtime.streaming.tier import STORAGE_DTYPES

SPEC = BufferSpec(3, (2, 5), np.dtype("float16"), entries=4)

specs = st.builds(
    BufferSpec,
    buffer_id=st.integers(0, 2**40),
    shape=st.lists(st.integers(0, 5000), max_size=3).map(tuple),
    dtype=st.sampled_from(sorted(STORAGE_DTYPES)).map(np.dtype),
    entries=st.integers(0, 10_000),
)


def manifest(**changes: Any) -> dict[str, Any]:
    """A correct manifest of ``SPEC``, written out by hand, with changes."""
    return {
        "format": "popxl-streaming-memory",
        "version": 1,
        "byte_order": sys.byteorder,
        "page_bytes": 4096,
        "buffers": [{"id": 3, "shape": [2, 5], "dtype": "float16", "entries": 4, "slot_bytes": 4096}],
        **changes,
    }


def buffer_entry(**changes: Any) -> dict[str, Any]:
    return {**manifest()["buffers"][0], **changes}


def decode(content: Any) -> Any:
    return decode_manifest(json.dumps(content).encode(), "DIR/streaming-memory.json")


# ---------------------------------------------------------------- slots


@pytest.mark.parametrize(
    ("shape", "dtype", "expected_bytes"),
    [((), "int8", 4096), ((1024,), "float32", 4096), ((1025,), "float32", 8192), ((0, 7), "int64", 0)],
)
def test_slot_is_the_entry_padded_to_pages(shape: tuple[int, ...], dtype: str, expected_bytes: int) -> None:
    assert slot_bytes(BufferSpec(1, shape, np.dtype(dtype), entries=1)) == expected_bytes


@given(specs)
def test_slots_follow_each_other_without_overlap_and_fill_the_slab(spec: BufferSpec) -> None:
    assert spec.entry_bytes <= slot_bytes(spec) < spec.entry_bytes + 4096
    assert slot_offset(spec, 0) == 0
    assert slot_offset(spec, 7) - slot_offset(spec, 6) == slot_bytes(spec)
    assert slot_offset(spec, spec.entries) == slab_bytes(spec)
    assert slot_offset(spec, 3) % 4096 == 0


def test_slab_beyond_the_largest_file_is_an_error_with_the_size() -> None:
    with pytest.raises(StreamingMemoryError, match=f"{2**52 * 4096} bytes"):
        slab_bytes(BufferSpec(1, (1,), np.dtype("int8"), entries=2**52))


def test_slab_name_is_made_from_the_id() -> None:
    assert slab_name(12) == "buffer-12.slab"


# ---------------------------------------------------------------- buffers


@pytest.mark.parametrize("dtype", ["object", "S4", "U2", ">f4", "datetime64[s]", "V3", [("x", "u1")]], ids=str)
def test_buffer_of_a_dtype_that_is_no_native_number_is_refused(dtype: Any) -> None:
    with pytest.raises(PopxlValueError, match="Streaming Memory cannot hold"):
        BufferSpec(1, (2,), np.dtype(dtype), entries=1)


@pytest.mark.parametrize(("buffer_id", "shape", "entries"), [(-1, (2,), 1), (1, (2, -1), 1), (1, (2,), -1)])
def test_buffer_with_a_negative_number_is_refused(buffer_id: int, shape: tuple[int, ...], entries: int) -> None:
    with pytest.raises(PopxlValueError, match="none may be negative"):
        BufferSpec(buffer_id, shape, np.dtype("int8"), entries)


def test_buffer_of_numpy_integers_does_not_overflow() -> None:
    spec = BufferSpec(1, (np.int32(2**20), np.int32(2**20)), np.dtype("float32"), entries=np.int32(1))
    assert spec.entry_bytes == 2**42


# ---------------------------------------------------------------- manifest


def test_manifest_is_what_the_format_page_says() -> None:
    assert json.loads(encode_manifest([SPEC])) == manifest()


@given(st.lists(specs, max_size=4, unique_by=lambda spec: spec.buffer_id))
def test_manifest_agrees_with_the_buffers_it_was_made_from(buffers: list[BufferSpec]) -> None:
    assert describe_difference(decode_manifest(encode_manifest(buffers), "path"), reversed(buffers)) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 4096,
        b"{",
        json.dumps(manifest()).encode()[:-9],
        b"\xff\xfe{}",
        b"null",
        b"[]",
        b"12",
        b'"text"',
        b"[" * 100_000,
        b'{"version": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda raw: f"{len(raw)}-bytes",
)
def test_file_that_is_no_json_object_is_damaged(raw: bytes) -> None:
    with pytest.raises(StreamingMemoryError, match=r"DIR/streaming-memory\.json is damaged"):
        decode_manifest(raw, "DIR/streaming-memory.json")


@pytest.mark.parametrize("name", ["version", "page_bytes", "buffers"])
def test_missing_field_is_named(name: str) -> None:
    content = manifest()
    del content[name]
    with pytest.raises(StreamingMemoryError, match=f"damaged: {name} is"):
        decode(content)


@pytest.mark.parametrize("name", ["id", "shape", "dtype", "entries", "slot_bytes"])
def test_missing_field_of_a_buffer_is_named(name: str) -> None:
    entry = buffer_entry()
    del entry[name]
    with pytest.raises(StreamingMemoryError, match=f"damaged: {name} is None"):
        decode(manifest(buffers=[entry]))


@pytest.mark.parametrize("name", ["id", "entries", "slot_bytes"])
@pytest.mark.parametrize("value", [-1, 2**63, 10**400, 1.0, 1e300, True, None, "4", "../../etc/passwd", [4], {}])
def test_number_of_a_buffer_that_is_none_is_damaged(name: str, value: Any) -> None:
    with pytest.raises(StreamingMemoryError, match=f"damaged: {name} is"):
        decode(manifest(buffers=[buffer_entry(**{name: value})]))


@pytest.mark.parametrize("shape", [None, 5, "25", {"0": 2}, [-2], [2.0], ["2"], [[2]], [True], [2**70]], ids=str)
def test_shape_that_is_none_is_damaged(shape: Any) -> None:
    with pytest.raises(StreamingMemoryError, match="damaged: shape is"):
        decode(manifest(buffers=[buffer_entry(shape=shape)]))


@pytest.mark.parametrize("dtype", [None, 4, "object", "O", "|V8", "float8", ">f4", "../x", "x" * 10**6, ["float16"]])
def test_dtype_that_is_none_is_damaged(dtype: Any) -> None:
    with pytest.raises(StreamingMemoryError, match="damaged: dtype is") as caught:
        decode(manifest(buffers=[buffer_entry(dtype=dtype)]))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "content",
    [
        manifest(extra=1),
        manifest(page_bytes=512),
        manifest(page_bytes=0),
        manifest(buffers={}),
        manifest(buffers=[[]]),
        manifest(buffers=[buffer_entry(file="../../etc/passwd")]),
        manifest(buffers=[buffer_entry(), buffer_entry()]),
        manifest(version=0),
        manifest(version="1"),
    ],
    ids=lambda content: json.dumps(content)[60:120],
)
def test_other_nonsense_is_damaged(content: Any) -> None:
    with pytest.raises(StreamingMemoryError, match="is damaged"):
        decode(content)


def test_newer_version_is_told_as_such_whatever_else_changed() -> None:
    with pytest.raises(StreamingMemoryError, match="of format version 2; this OpenPopXL reads version 1"):
        decode({"format": "popxl-streaming-memory", "version": 2, "shards": 4})


def test_foreign_format_is_told_as_such() -> None:
    with pytest.raises(StreamingMemoryError, match="of the format 'zarr'"):
        decode(manifest(format="zarr"))


def test_other_byte_order_is_told_as_such() -> None:
    other = {"little": "big", "big": "little"}[sys.byteorder]
    with pytest.raises(StreamingMemoryError, match=f"byte order '{other}'"):
        decode(manifest(byte_order=other))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(manifest())), inside=st.sampled_from(sorted(buffer_entry())), value=json_values)
def test_any_value_anywhere_is_read_or_refused_and_nothing_else(name: str, inside: str, value: Any) -> None:
    for content in (manifest(**{name: value}), manifest(buffers=[buffer_entry(**{inside: value})]), value):
        try:
            decode(content)
        except StreamingMemoryError as error:
            assert error.hint  # noqa: PT017 - both ways are right


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(StreamingMemoryError):
        decode_manifest(raw, "path")


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            [BufferSpec(3, (2, 6), SPEC.dtype, 4)],
            r"buffer 3 has shape \(2, 5\) in the directory and \(2, 6\) in the program",
        ),
        ([BufferSpec(3, (2, 5), np.dtype("int16"), 4)], "buffer 3 has dtype float16 in the directory and int16"),
        ([BufferSpec(3, (2, 5), SPEC.dtype, 5)], "buffer 3 has entries 4 in the directory and 5"),
        ([SPEC, BufferSpec(4, (), SPEC.dtype, 1)], "buffer 4 is in the program but not in the directory"),
        ([], "buffer 3 is in the directory but not in the program"),
    ],
    ids=["shape", "dtype", "entries", "added", "gone"],
)
def test_difference_names_the_buffer_and_both_values(changed: list[BufferSpec], difference: str) -> None:
    found = decode_manifest(encode_manifest([SPEC]), "path")
    assert re.search(difference, describe_difference(found, changed) or "")
