from __future__ import annotations

import json
import re
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import assume, given
from hypothesis import strategies as st

from popxl.errors import PopxlValueError, StreamingMemoryError
from popxl.runtime.streaming import BufferSpec
from popxl.runtime.streaming.layout import (
    EntryTable,
    Generation,
    decode_generation,
    decode_manifest,
    describe_difference,
    encode_generation,
    encode_manifest,
    generation_bytes,
    slab_bytes,
    slab_name,
    slot_offset,
)
from popxl.runtime.streaming.tier import STORAGE_DTYPES

SPEC = BufferSpec(3, (2, 5), np.dtype("float16"), entries=4, names=((0, "w"), (2, "größe\n")))
SCRATCH = BufferSpec(3, (2, 5), np.dtype("float16"), entries=4)


@st.composite
def buffer_specs(draw: st.DrawFn, max_entries: int = 10_000) -> BufferSpec:
    entries = draw(st.integers(0, max_entries))
    name = st.tuples(st.integers(0, max(entries - 1, 0)), st.text(max_size=8))
    return BufferSpec(
        buffer_id=draw(st.integers(0, 2**40)),
        shape=tuple(draw(st.lists(st.integers(0, 5000), max_size=3))),
        dtype=np.dtype(draw(st.sampled_from(sorted(STORAGE_DTYPES)))),
        entries=entries,
        names=tuple(draw(st.lists(name, max_size=3 if entries else 0))),
    )


specs = buffer_specs()


def manifest(**changes: Any) -> dict[str, Any]:
    """A correct manifest of ``SPEC``, written out by hand, with changes."""
    return {
        "format": "popxl-streaming-memory",
        "version": 2,
        "byte_order": sys.byteorder,
        "page_bytes": 4096,
        "buffers": [
            {
                "id": 3,
                "shape": [2, 5],
                "dtype": "float16",
                "entries": 4,
                "slot_bytes": 4096,
                "names": [[0, "w"], [2, "größe\n"]],
            }
        ],
        **changes,
    }


def buffer_entry(**changes: Any) -> dict[str, Any]:
    return {**manifest()["buffers"][0], **changes}


def decode(content: Any) -> Any:
    return decode_manifest(json.dumps(content).encode(), "DIR/streaming-memory.json")


# ---------------------------------------------------------------- slots


@given(specs)
def test_slots_follow_each_other_without_overlap_and_fill_the_slab(spec: BufferSpec) -> None:
    slots = 2 if spec.names else 1
    offsets = [slot_offset(spec, entry, slot) for slot in range(1, slots + 1) for entry in range(min(spec.entries, 5))]
    assert all(offset % 4096 == 0 for offset in offsets)
    assert slot_offset(spec, 0, 1) == 0
    assert slot_offset(spec, 7, 1) - slot_offset(spec, 6, 1) == spec.padded_bytes
    assert slot_offset(spec, 0, 2) == slot_offset(spec, spec.entries, 1)
    assert slot_offset(spec, spec.entries, slots) == slab_bytes(spec)


def test_slots_of_a_small_buffer_by_hand() -> None:
    spec = BufferSpec(1, (1025,), np.dtype("float32"), entries=3, names=((0, "w"),))
    assert [slot_offset(spec, e, s) for s in (1, 2) for e in (0, 1, 2)] == [0, 8192, 16384, 24576, 32768, 40960]
    assert slab_bytes(spec) == 49152


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


@pytest.mark.parametrize("name", ["id", "shape", "dtype", "entries", "slot_bytes", "names"])
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


@pytest.mark.parametrize(
    "shape", [None, 5, "25", {"0": 2}, [-2], [2.0], ["2"], [[2]], [True], [2**70], [1] * 65], ids=str
)
def test_shape_that_is_none_is_damaged(shape: Any) -> None:
    with pytest.raises(StreamingMemoryError, match="damaged: shape is"):
        decode(manifest(buffers=[buffer_entry(shape=shape)]))


@pytest.mark.parametrize("dtype", [None, 4, "object", "O", "|V8", "float8", ">f4", "../x", "x" * 10**6, ["float16"]])
def test_dtype_that_is_none_is_damaged(dtype: Any) -> None:
    with pytest.raises(StreamingMemoryError, match="damaged: dtype is") as caught:
        decode(manifest(buffers=[buffer_entry(dtype=dtype)]))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "names",
    [None, "w", {"0": "w"}, ["w"], [["w", 0]], [[0]], [[0, "w", 1]], [[4, "w"]], [[-1, "w"]], [[True, "w"]]],
    ids=str,
)
def test_names_that_are_none_are_damaged(names: Any) -> None:
    with pytest.raises(StreamingMemoryError, match="damaged: names "):
        decode(manifest(buffers=[buffer_entry(names=names)]))


@pytest.mark.parametrize(
    "names",
    [[[0.0, "w"]], [[0, None]], [[0, ["w"]]], [[2**70, "w"]], [[0, "w" * 4097]], [[0, "w"], 5]],
    ids=lambda names: str(names)[:20],
)
def test_name_that_is_none_is_damaged_and_the_message_short(names: Any) -> None:
    with pytest.raises(StreamingMemoryError, match="damaged: names has") as caught:
        decode(manifest(buffers=[buffer_entry(names=names)]))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 4096, "\0\x1b[2J", "\ud800", '"]]}'])
def test_any_text_is_a_name(name: str) -> None:
    spec = BufferSpec(1, (2,), np.dtype("int8"), entries=2, names=((1, name),))
    assert [record.spec("path") for record in decode_manifest(encode_manifest([spec]), "path")] == [spec]


def test_name_that_is_too_long_is_refused_before_it_is_written() -> None:
    spec = BufferSpec(1, (2,), np.dtype("int8"), entries=1, names=((0, "w" * 4097),))
    with pytest.raises(StreamingMemoryError, match="a name of 4097 characters, more than 4096"):
        encode_manifest([spec])


def test_manifest_that_nobody_could_read_again_is_refused() -> None:
    names = tuple((0, f"{i:04096d}") for i in range(5000))
    with pytest.raises(StreamingMemoryError, match="bytes, more than 16777216"):
        encode_manifest([BufferSpec(1, (2,), np.dtype("int8"), entries=1, names=names)])


@given(specs)
def test_buffer_comes_back_from_the_manifest(spec: BufferSpec) -> None:
    (record,) = decode_manifest(encode_manifest([spec]), "path")
    assert record.spec("path") == spec


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"slot_bytes": 8192}, "slot_bytes 8192 for entries of 20 bytes"),
        ({"slot_bytes": 0}, "slot_bytes 0 for entries of 20 bytes"),
        ({"shape": [2**62, 2**62]}, "which no array has"),
        ({"shape": [0, 2**62, 2**62], "slot_bytes": 0}, "which no array has"),
        ({"entries": 2**60}, "more than a file can hold"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_together_make_no_buffer(changes: dict[str, Any], problem: str) -> None:
    (record,) = decode(manifest(buffers=[buffer_entry(**changes)]))
    with pytest.raises(StreamingMemoryError, match=problem):
        record.spec("path")


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
    with pytest.raises(StreamingMemoryError, match="of format version 3; this OpenPopXL reads version 2") as caught:
        decode({"format": "popxl-streaming-memory", "version": 3, "shards": 4})
    assert "update OpenPopXL" in str(caught.value.hint)


def test_version_1_is_refused_as_older() -> None:
    with pytest.raises(StreamingMemoryError, match="of format version 1; this OpenPopXL reads version 2") as caught:
        decode(manifest(version=1))
    assert "an older OpenPopXL wrote it" in str(caught.value.hint)


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
            [BufferSpec(3, (2, 6), SPEC.dtype, 4, SPEC.names)],
            r"buffer 3 has shape \(2, 5\) in the directory and \(2, 6\) in the program",
        ),
        (
            [BufferSpec(3, (2, 5), np.dtype("int16"), 4, SPEC.names)],
            "buffer 3 has dtype float16 in the directory and int16",
        ),
        ([BufferSpec(3, (2, 5), SPEC.dtype, 5, SPEC.names)], "buffer 3 has entries 4 in the directory and 5"),
        ([SCRATCH], "buffer 3 has persistent True in the directory and False in the program"),
        ([SPEC, BufferSpec(4, (), SPEC.dtype, 1)], "buffer 4 is in the program but not in the directory"),
        ([], "buffer 3 is in the directory but not in the program"),
    ],
    ids=["shape", "dtype", "entries", "scratch", "added", "gone"],
)
def test_difference_names_the_buffer_and_both_values(changed: list[BufferSpec], difference: str) -> None:
    found = decode_manifest(encode_manifest([SPEC]), "path")
    assert re.search(difference, describe_difference(found, changed) or "")


def test_names_of_variables_make_no_difference() -> None:
    renamed = BufferSpec(3, (2, 5), SPEC.dtype, 4, ((1, "v"),))
    assert describe_difference(decode_manifest(encode_manifest([SPEC]), "path"), [renamed]) is None


# ---------------------------------------------------------------- commit record

SECOND = BufferSpec(9, (), np.dtype("int8"), entries=1, names=((0, "step"),))
TABLES = {
    9: EntryTable(np.array([2], np.uint8), np.array([1], np.uint64)),
    3: EntryTable(np.array([1, 0, 2, 1], np.uint8), np.array([2**64 - 1, 0, 0x0123456789ABCDEF, 5], np.uint64)),
}
# Written out by hand, but for the digest at the end.
GOLDEN = bytes.fromhex(
    "706f70786c2d67656e65726174696f6e"  # popxl-generation
    "0200000000000000"  # version
    "0700000000000000"  # number
    "0300000000000000 0400000000000000"  # buffer 3 of 4 entries
    "01000201 00000000"  # slots, padding
    "ffffffffffffffff 0000000000000000 efcdab8967452301 0500000000000000"  # digests
    "0900000000000000 0100000000000000"  # buffer 9 of 1 entry
    "02 00000000000000"
    "0100000000000000"
    "cf584cacf0dab9df"  # xxh3_64 of all before
)


def sealed(content: bytes) -> bytes:
    """A record with a right digest, so that what is checked behind the digest is reached."""
    return content + xxhash.xxh3_64_intdigest(content).to_bytes(8, "little")


def decode_record(raw: bytes) -> Generation:
    return decode_generation(raw, "DIR/generation", [SECOND, SPEC, BufferSpec(4, (2,), SPEC.dtype, 3)])


def test_record_is_what_the_format_page_says() -> None:
    assert encode_generation(Generation(7, TABLES)) == GOLDEN


def test_record_is_read_as_it_was_meant() -> None:
    generation = decode_record(GOLDEN)
    assert generation.number == 7
    assert sorted(generation.tables) == [3, 9]
    for buffer_id, table in generation.tables.items():
        assert (table.slots.dtype, table.digests.dtype) == (np.uint8, np.uint64)
        np.testing.assert_array_equal(table.slots, TABLES[buffer_id].slots)
        np.testing.assert_array_equal(table.digests, TABLES[buffer_id].digests)


def test_tables_of_a_record_may_be_changed() -> None:
    table = decode_record(GOLDEN).tables[3]
    table.slots[0], table.digests[0] = 2, 4
    assert (table.slots[0], table.digests[0]) == (2, 4)


@given(st.lists(buffer_specs(max_entries=50), max_size=4, unique_by=lambda spec: spec.buffer_id), st.data())
def test_record_comes_back_whatever_the_buffers(buffers: list[BufferSpec], data: st.DataObject) -> None:
    seed = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tables = {
        spec.buffer_id: EntryTable(
            seed.integers(0, 3, spec.entries, np.uint8), seed.integers(0, 2**64, spec.entries, np.uint64)
        )
        for spec in buffers
        if spec.is_persistent
    }
    raw = encode_generation(Generation(2**40, tables))
    assert len(raw) == generation_bytes(buffers)
    found = decode_generation(raw, "path", buffers)
    assert (found.number, found.tables.keys()) == (2**40, tables.keys())
    for buffer_id, table in tables.items():
        np.testing.assert_array_equal(found.tables[buffer_id].slots, table.slots)
        np.testing.assert_array_equal(found.tables[buffer_id].digests, table.digests)


def test_record_cut_off_anywhere_is_damaged() -> None:
    for size_bytes in range(len(GOLDEN)):
        with pytest.raises(StreamingMemoryError, match=rf"DIR/generation is damaged: it has {size_bytes} bytes"):
            decode_record(GOLDEN[:size_bytes])


def test_record_with_something_behind_it_is_damaged() -> None:
    with pytest.raises(StreamingMemoryError, match=f"it has {len(GOLDEN) + 1} bytes, and its buffers need"):
        decode_record(GOLDEN + b"\0")


def test_record_with_any_one_bit_flipped_is_refused() -> None:
    for bit in range(8 * len(GOLDEN)):
        raw = bytearray(GOLDEN)
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamingMemoryError, match=r"is damaged|is of format version"):
            decode_record(bytes(raw))


@pytest.mark.parametrize(
    ("position", "value", "problem"),
    [
        (24, 0, "its number is 0"),
        (31, 0x80, "its number is"),
        (32, 4, "it has buffer 4 with 4 entries, and not buffer 3 with 4"),
        (40, 5, "it has buffer 3 with 5 entries, and not buffer 3 with 4"),
        (47, 0xFF, "entries, and not buffer 3 with 4"),
        (50, 3, "buffer 3, entry 2 is in slot 3"),
        (51, 255, "buffer 3, entry 3 is in slot 255"),
        (52, 1, "the padding after the slots of buffer 3 is not zero"),
    ],
)
def test_record_that_lies_with_a_right_digest_is_damaged(position: int, value: int, problem: str) -> None:
    content = bytearray(GOLDEN[:-8])
    content[position] = value
    with pytest.raises(StreamingMemoryError, match=rf"DIR/generation is damaged: .*{problem}"):
        decode_record(sealed(bytes(content)))


def test_record_of_another_version_is_told_as_such() -> None:
    with pytest.raises(StreamingMemoryError, match="of format version 3; this OpenPopXL reads version 2"):
        decode_record(sealed(GOLDEN[:16] + (3).to_bytes(8, "little") + GOLDEN[24:-8]))


@given(st.binary(max_size=300), st.sampled_from([b"", GOLDEN[:16], GOLDEN[:24], GOLDEN[:32]]), st.booleans())
def test_any_bytes_are_no_record(raw: bytes, start: bytes, is_sealed: bool) -> None:
    raw = sealed(start + raw) if is_sealed else start + raw
    assume(len(raw) != len(GOLDEN) or not is_sealed)
    with pytest.raises(StreamingMemoryError):
        decode_record(raw)


@given(st.binary(min_size=len(GOLDEN) - 40, max_size=len(GOLDEN) - 40))
def test_any_content_of_the_right_size_is_read_or_refused_and_nothing_else(content: bytes) -> None:
    try:
        generation = decode_record(sealed(GOLDEN[:32] + content))
    except StreamingMemoryError:
        return
    assert all((table.slots <= 2).all() for table in generation.tables.values())


def test_record_costs_no_memory_before_its_size_is_known_to_be_right() -> None:
    huge = BufferSpec(3, (2,), np.dtype("int8"), entries=2**26, names=((0, "w"),))
    tracemalloc.start()
    try:
        with pytest.raises(StreamingMemoryError, match="its buffers need"):
            decode_generation(GOLDEN, "path", [huge])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_more_entries_than_a_record_can_list_are_refused_before_the_first_commit() -> None:
    huge = BufferSpec(3, (), np.dtype("int8"), entries=2**27, names=((0, "w"),))
    with pytest.raises(StreamingMemoryError, match="bytes, more than 1073741824"):
        encode_manifest([huge])


def test_entries_of_a_scratch_buffer_are_not_in_the_record() -> None:
    encode_manifest([BufferSpec(3, (), np.dtype("int8"), entries=2**27)])
    assert generation_bytes([BufferSpec(3, (), np.dtype("int8"), entries=2**27)]) == generation_bytes([])
