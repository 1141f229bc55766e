"""Bundles: what is written comes back, and nothing else is accepted."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml
from safetensors.numpy import load, save

from profusion_cli import __version__
from profusion_cli.bundle import looks_like_bundle, plain_yaml, read_bundle, tensors
from profusion_cli.errors import BundleError, DivergedError, OutputError
from profusion_cli.files import sha256_of
from tests.conftest import write_bundle

PNG = b"\x89PNG\r\n\x1a\n" + b"picture"
PARENT = "ab" * 32
MANIFEST = {
    "kind": "subject",
    "base": {"id": "some/base", "revision": "0" * 40, "fingerprint": {"unet": "0123456789abcdef"}},
    "config": {"class_word": "a person", "finetune": {"lr": 2e-5, "steps": 50, "negative": "ugly\n☃ 'x': #"}},
    "seed": 7,
    "inputs": [{"kind": "photo", "name": "2024-01-01", "sha256": PARENT}],
    "promptnet": {"embedding_dim": 6},
    "parents": [PARENT],
}
TENSORS = {
    "views.safetensors": save({"latents": np.zeros((1, 2), np.float32)}),
    "unet.safetensors": save({"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.uint8)}),
    "promptnet.safetensors": save({"p": np.linspace(-1, 1, 6, dtype=np.float16), "n": np.array([3], np.int64)}),
}
SORTED = ("promptnet.safetensors", "unet.safetensors", "views.safetensors")


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "me.pfz"
    write_bundle(path, MANIFEST, TENSORS, PNG)
    return path.read_bytes()


def raw_safetensors(header, data=b""):
    """A safetensors file from a header as JSON text or table, checked by nobody."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def entries_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def zipped(entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def with_manifest(data, change):
    """The bundle with another manifest: `change` alters the table, or returns a text of its own."""
    (first, text), *rest = entries_of(data)
    manifest = yaml.safe_load(text)
    new = change(manifest)
    new = new if isinstance(new, str | bytes) else yaml.safe_dump(manifest, sort_keys=False)
    return zipped([(first, new), *rest])


def with_tensors(data, blob, tensors=None, file="unet.safetensors"):
    """The bundle with another safetensors file, its hash and size in the manifest made to fit."""
    entries = dict(entries_of(data))
    manifest = yaml.safe_load(entries["manifest.yaml"])
    entry = manifest["files"][file]
    entry.update(sha256=sha256_of(blob), size=len(blob))
    if tensors is not None:
        entry["tensors"] = tensors
    entries |= {"manifest.yaml": yaml.safe_dump(manifest, sort_keys=False), file: blob}
    return zipped(entries.items())


def refused(data, *words):
    """Reading `data` raises one sentence with `words` in it, and a hint."""
    with pytest.raises(BundleError) as caught:
        read_bundle(data, "x.pfz")
    error = caught.value
    assert error.exit_code == 4
    assert error.message.startswith("'x.pfz' ") and error.message.endswith(".") and "\n" not in error.message
    assert error.hint.endswith(".")
    for word in words:
        assert word in error.message
    return error


# --- round trip -------------------------------------------------------------------------------


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "me.pfz"
    sha256 = write_bundle(path, MANIFEST, TENSORS, PNG)
    data = path.read_bytes()
    bundle = read_bundle(data, "me.pfz")
    assert bundle.sha256 == sha256 == sha256_of(data)
    assert (bundle.name, bundle.size, bundle.kind, bundle.preview) == ("me.pfz", len(data), "subject", PNG)
    assert {key: bundle.manifest[key] for key in MANIFEST} == MANIFEST
    assert bundle.manifest["schema_version"] == 1
    assert bundle.manifest["tool"] == {"name": "profusion", "version": __version__}
    assert bundle.files == SORTED
    for name, blob in TENSORS.items():
        assert bundle.read(name) == blob
    np.testing.assert_array_equal(load(bytes(bundle.read("promptnet.safetensors")))["n"], [3])
    with pytest.raises(BundleError, match=r"'me.pfz' has no 'images.safetensors'"):
        bundle.read("images.safetensors")


def test_tensors_are_not_copied(written):
    view = read_bundle(written, "me.pfz").read("unet.safetensors")
    assert view.obj is written and view == TENSORS["unet.safetensors"]


def test_a_file_that_is_shortened_after_it_was_verified(tmp_path, written):
    """In a child, since a mapped file would kill it by SIGBUS."""
    path = tmp_path / "me.pfz"
    path.write_bytes(written)
    code = """
import os, sys
from profusion_cli.bundle import read_bundle
from profusion_cli.files import read_source, sha256_of
bundle = read_bundle(read_source(sys.argv[1]), "me.pfz")
os.truncate(sys.argv[1], 0)
print(*(sha256_of(bundle.read(name)) for name in bundle.files))
"""
    child = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [sha256_of(TENSORS[name]) for name in SORTED]


def test_any_zip_tool_opens_it_and_finds_stored_entries_in_order(written):
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        assert archive.testzip() is None
        infos = archive.infolist()
    assert [info.filename for info in infos] == ["manifest.yaml", *SORTED, "preview.png"]
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}


def test_a_bundle_stored_again_by_zipfile_is_accepted(written):
    again = read_bundle(zipped(entries_of(written)), "x.pfz")
    assert again.manifest == read_bundle(written, "x.pfz").manifest


def test_the_same_content_gives_the_same_bytes(tmp_path, written, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 2e9)
    path = tmp_path / "again.pfz"
    write_bundle(path, MANIFEST, dict(reversed(TENSORS.items())), PNG)
    assert path.read_bytes() == written


def test_manifest_is_readable(written):
    text = dict(entries_of(written))["manifest.yaml"].decode()
    assert "a.weight: {dtype: F32, shape: [3, 4]}\n" in text
    assert "☃" in text and "&" not in text
    assert text.startswith("schema_version: 1\nkind: subject\ntool:\n  name: profusion\n")


def test_odd_values_survive_the_manifest(tmp_path):
    strings = [
        "yes",
        "1e-4",
        "0x1F",
        "~",
        "a: b",
        " x ",
        "\x1b[31m",
        "\u2028\x85\ufeff😀",
        "é" * 300,
        "<<",
        "=",
        "",
    ]
    shared = [1, -(2**63), 1e-05, 1e300, 0.1, True, None]
    config = {
        "class_word": "x",
        "strings": strings,
        "one": shared,
        "two": shared,
        "nested": {"yes": (1, 2)},
        "on": float("inf"),
    }
    inputs = [{"kind": "photo", "name": "a\udcff", "sha256": PARENT}]
    write_bundle(tmp_path / "me.pfz", MANIFEST | {"config": config, "inputs": inputs}, TENSORS)
    manifest = read_bundle((tmp_path / "me.pfz").read_bytes(), "me.pfz").manifest
    assert manifest["config"] == config | {"nested": {"yes": [1, 2]}}
    assert manifest["inputs"] == [inputs[0] | {"name": "a\\udcff"}]


def test_zip64_is_written_and_read(tmp_path, monkeypatch):
    """The form that files of 4 GiB and more need, forced on small ones."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    write_bundle(tmp_path / "me.pfz", MANIFEST, TENSORS, PNG)
    data = (tmp_path / "me.pfz").read_bytes()
    assert b"PK\x06\x06" in data
    assert read_bundle(data, "x.pfz").read("unet.safetensors") == TENSORS["unet.safetensors"]
    assert dict(entries_of(data))["unet.safetensors"] == TENSORS["unet.safetensors"]
    at = data.rindex(b"PK\x06\x06")
    for position in range(at, len(data)):
        refused(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


def test_zip64_of_zipfile_is_read(written, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    data = zipped(entries_of(written))
    assert b"PK\x06\x06" in data and b"\xff\xff\xff\xff" in data
    assert read_bundle(data, "x.pfz").preview == PNG


def test_looks_like_bundle(written):
    assert looks_like_bundle(written)
    assert not looks_like_bundle(b"") and not looks_like_bundle(PNG)


def test_require(tmp_path, written):
    bundle = read_bundle(written, "x.pfz")
    assert bundle.require("subject") is bundle
    write_bundle(tmp_path / "p.pfz", MANIFEST | {"kind": "promptnet"}, TENSORS)
    with pytest.raises(BundleError) as caught:
        read_bundle((tmp_path / "p.pfz").read_bytes(), "p.pfz").require("subject")
    assert caught.value.message == "'p.pfz' holds a promptnet, and a subject is needed here."
    assert "`profusion finetune`" in caught.value.hint and "`--promptnet`" in caught.value.hint
    with pytest.raises(BundleError, match="holds a subject, and images are needed here") as caught:
        bundle.require("images")
    assert "`profusion augment`" in caught.value.hint


# --- writing ----------------------------------------------------------------------------------


def test_existing_file_stays_without_force(tmp_path):
    path = tmp_path / "me.pfz"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="already exists"):
        write_bundle(path, MANIFEST, TENSORS)
    assert path.read_bytes() == b"mine"
    write_bundle(path, MANIFEST, TENSORS, force=True)
    assert read_bundle(path.read_bytes(), "me.pfz").kind == "subject"


@pytest.mark.parametrize("existing", [None, b"mine"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, existing):
    path = tmp_path / "me.pfz"
    if existing:
        path.write_bytes(existing)

    def failing(handle):
        assert [file for file in tmp_path.iterdir() if file != path]  # it was half written
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OutputError, match="no space left"):
        write_bundle(path, MANIFEST, TENSORS, force=True)
    assert [file.name for file in tmp_path.iterdir()] == (["me.pfz"] if existing else [])
    assert not existing or path.read_bytes() == existing


def test_standard_output(capfdbinary, written):
    sha256 = write_bundle("-", MANIFEST, TENSORS, PNG)
    assert capfdbinary.readouterr().out == written
    assert sha256 == sha256_of(written)


@pytest.mark.parametrize(
    ("change", "files", "words"),
    [
        ({"kind": "cake"}, TENSORS, "the kind is 'cake'"),
        ({}, TENSORS | {"other.safetensors": TENSORS["unet.safetensors"]}, "other.safetensors"),
        ({}, {}, "no files are listed"),
        ({}, TENSORS | {"unet.safetensors": b"not safetensors"}, "header claims"),
        ({}, TENSORS | {"unet.safetensors": save({"a": np.ones(3)})}, "'a' has the dtype 'F64'"),
        ({"parents": ["abc"]}, TENSORS, "'abc' among the parents"),
        ({"config": {"class_word": "x", "path": object()}}, TENSORS, "cannot be written"),
        ({"config": {"class_word": "x", "long": "x" * (1 << 20)}}, TENSORS, "1048576 are allowed"),
        ({"config": {"class_word": "x", "bytes": b"x"}}, TENSORS, "YAML tag"),
    ],
)
def test_mistakes_of_the_caller(tmp_path, change, files, words):
    with pytest.raises(ValueError, match=words):
        write_bundle(tmp_path / "me.pfz", MANIFEST | change, files)
    assert not list(tmp_path.iterdir())


# --- numbers that are not finite --------------------------------------------------------------

BAD_BITS = {"F32": ("<u4", [0x7F800000, 0xFF800000, 0x7FC00001]), "F16": ("<u2", [0x7C00, 0xFC00, 0x7E01])}
BAD_BITS["BF16"] = ("<u2", [0x7F80, 0xFF80, 0x7FC1])
BAD = [(dtype, kind, bits) for dtype, (kind, all_bits) in BAD_BITS.items() for bits in all_bits]


@pytest.mark.parametrize(("dtype", "kind", "bits"), BAD)
def test_non_finite_numbers(tmp_path, written, monkeypatch, dtype, kind, bits):
    monkeypatch.setattr(tensors, "_CHUNK", 16)
    values = np.full(21, bits, kind)
    values[:-1] &= ~np.array(1 << (23 if dtype == "F32" else 10 if dtype == "F16" else 7), kind)  # the largest number
    described = {"t": {"dtype": dtype, "shape": [21]}}
    header = {"t": described["t"] | {"data_offsets": [0, values.nbytes]}}
    bad = raw_safetensors(header, values.tobytes())
    values[-1] = values[0]
    good = raw_safetensors(header, values.tobytes())
    read_bundle(with_tensors(written, good, described), "x.pfz")
    refused(with_tensors(written, bad, described), "non-finite", "'t'", "'unet.safetensors'")
    with pytest.raises(DivergedError, match=r"weights of 'unet.safetensors' contain non-finite numbers"):
        write_bundle(tmp_path / "bad.pfz", MANIFEST, TENSORS | {"unet.safetensors": bad})
    assert not (tmp_path / "bad.pfz").exists()


# --- tampering with the ZIP -------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x03\x04", PNG, b"hello" * 100, b"PK\x05\x06" + bytes(18)])
def test_what_is_no_bundle(data):
    refused(data, "truncated")


def test_flipped_tensor_byte(written):
    at = written.index(TENSORS["unet.safetensors"]) + len(TENSORS["unet.safetensors"]) - 1
    flipped = bytearray(written)
    flipped[at] ^= 1
    refused(bytes(flipped), "checksum of 'unet.safetensors'")
    entries = dict(entries_of(written))
    entries["unet.safetensors"] = entries["unet.safetensors"][:-1] + b"\0"
    refused(zipped(entries.items()), "'unet.safetensors'", "sha256")


def test_compressed_entries(written):
    refused(zipped(entries_of(written), zipfile.ZIP_DEFLATED), "'manifest.yaml'", "compressed")


@pytest.mark.parametrize(
    "name", ["extra.txt", "../../evil.safetensors", "/etc/passwd", "a\x1b[31m", "sub/unet.safetensors"]
)
def test_unknown_entries(written, name):
    first, *rest = entries_of(written)
    error = refused(zipped([first, (name, b"data"), *rest]), ascii(name), "does not belong")
    assert "\x1b" not in error.message


def test_file_that_the_manifest_does_not_list(written):
    *entries, preview = entries_of(written)
    refused(zipped([*entries, ("images.safetensors", TENSORS["unet.safetensors"]), preview]), "images.safetensors")
    refused(zipped([entries[0], entries[1], entries[3], preview]), "unet.safetensors")


@pytest.mark.filterwarnings("ignore::UserWarning")  # zipfile's
def test_duplicate_entry(written):
    entries = entries_of(written)
    refused(zipped([*entries[:3], *entries[2:]]), "'unet.safetensors' twice")


@pytest.mark.parametrize(
    ("order", "word"),
    [([1, 0, 2, 3, 4], "starts with"), ([0, 4, 1, 2, 3], "wrong order"), ([4, 0, 1, 2, 3], "starts with")],
)
def test_wrong_order(written, order, word):
    entries = entries_of(written)
    refused(zipped([entries[index] for index in order]), word)


def test_encrypted_entry(written):
    data = bytearray(written)
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(bytes(data), "encrypted entry 'manifest.yaml'")


def moved(data, at, junk, shift_offsets=False):
    """`data` with `junk` put in at `at`, the directory told where things are now."""
    end = len(data) - 22
    directory = struct.unpack_from("<L", data, end + 16)[0]
    out = bytearray(data)
    struct.pack_into("<L", out, end + 16, directory + len(junk))
    position = directory
    while shift_offsets and position < end:
        lengths = struct.unpack_from("<3H", data, position + 28)
        offset = struct.unpack_from("<L", data, position + 42)[0]
        struct.pack_into("<L", out, position + 42, offset + len(junk) * (offset >= at))
        position += 46 + sum(lengths)
    return bytes(out[:at] + junk + out[at:])


def test_junk_before_between_and_after(written):
    refused(b"#!/bin/sh\n" + written, "not a bundle")
    refused(moved(written, 0, b"#!/bin/sh\n", True), "not a bundle")
    refused(moved(written, 0, written[:60], True), "between its entries")
    second = written.index(b"PK\x03\x04", 1)
    refused(written[:second] + b"junk" + written[second:])
    refused(moved(written, second, b"junk", True), "between its entries")
    refused(moved(written, written.index(b"PK\x01\x02"), b"junk", True), "between its entries and its directory")
    refused(written[:-22] + b"junk" + written[-22:])
    refused(written + b"junk", "added at its end")
    refused(written[:-2] + b"\4\0junk", "added at its end")
    refused(written + written)


def test_extra_fields_and_comments(written):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries_of(written):
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<2H4s", 0x5455, 4, b"hide")
            archive.writestr(info, data)
    refused(buffer.getvalue(), "extra fields")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries_of(written):
            info = zipfile.ZipInfo(name)
            info.comment = b"hide"
            archive.writestr(info, data)
    refused(buffer.getvalue(), "directory")


@pytest.mark.parametrize("offset", [6, 8, 10, 14, 18, 22, 30])
def test_local_header_that_differs_from_the_directory(written, offset):
    data = bytearray(written)
    data[offset] ^= 2
    refused(bytes(data))


def test_every_field_of_the_directory_and_the_end_counts(written):
    start = written.index(b"PK\x01\x02")
    end = len(written) - 22
    free = set()  # version made by, version needed, attributes: nothing depends on them
    at = start
    while at < end:
        free |= {at + offset for offset in (*range(4, 8), *range(36, 42))}
        at += 46 + sum(struct.unpack_from("<3H", written, at + 28))
    assert at == end
    for position in set(range(start, len(written))) - free:
        refused(written[:position] + bytes([written[position] ^ 4]) + written[position + 1 :])


def test_directory_with_more_or_fewer_entries_than_it_says(written):
    end = len(written) - 22
    for count in (0, 1, 4, 6):
        data = bytearray(written)
        struct.pack_into("<2H", data, end + 8, count, count)
        refused(bytes(data))
    size = struct.unpack_from("<L", written, end + 12)[0]
    data = bytearray(written[:end] + b"junk" + written[end:])
    struct.pack_into("<L", data, end + 4 + 12, size + 4)
    refused(bytes(data), "something between its entries and its directory, or after that")


def test_many_entries_are_refused_unread(written):
    refused(zipped([(f"{number}.safetensors", b"") for number in range(5000)]), "5000 entries")


def test_lengths_in_the_directory_that_reach_over_its_end(written):
    """`zipfile` stops at the end of the directory, whatever the last record's lengths say."""
    for offset in (28, 30, 32):
        data = bytearray(written)
        data[written.rindex(b"PK\x01\x02") + offset] += 1
        refused(bytes(data))


def test_name_with_something_behind_a_null(written):
    """`zipfile` cuts names there."""
    long = zipped([(name.replace("preview.png", "preview.png#hid"), blob) for name, blob in entries_of(written)])
    refused(long.replace(b"preview.png#hid", b"preview.png\0hid"), "directory")


def test_name_that_is_not_ascii(written):
    """Neither with the flag for UTF-8 nor in the old code page."""
    entries = [(name.replace("unet", "ünet"), blob) for name, blob in entries_of(written)]
    refused(zipped(entries), "\\xfcnet.safetensors")
    entries = [(name.replace("preview", "#review"), blob) for name, blob in entries_of(written)]
    refused(zipped(entries).replace(b"#review", b"\x81review"), "directory")


def test_local_extra_field(written):
    """Extra bytes in an entry's own header, all offsets told."""
    data = bytearray(moved(written, 30 + len("manifest.yaml"), b"\1\0\x10\0" + bytes(16), True))
    data[28] = 20
    refused(bytes(data), "extra fields")


def test_wide_numbers_that_disagree(written, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 60)
    data = zipped(entries_of(written))
    monkeypatch.undo()
    assert read_bundle(data, "x.pfz").preview == PNG
    at = data.index(b"unet.safetensors\1\0\x10\0") + len("unet.safetensors") + 4  # its sizes, in its own header
    start = data.index(b"PK\x01\x02")
    where = data.index(b"unet.safetensors\1\0\x18\0", start) + len("unet.safetensors") + 4  # and in the directory
    for position in (*range(at, at + 16), *range(where, where + 24)):
        refused(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])


def test_a_huge_directory_is_not_parsed(written, monkeypatch):
    """Whether the end record tells its size or hides it behind a ZIP64 record."""
    monkeypatch.setattr(zipfile, "ZipInfo", None)  # which every record that is parsed needs
    many = written[: written.index(b"PK\x01\x02")] + b"PK\x01\x02" + bytes(42) * 100_000
    size = len(many) - written.index(b"PK\x01\x02")
    start = len(many) - size
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 5, 5, size, start, 0)
    refused(many + end, "directory")
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 5, 5, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(many), 1)
    refused(many + wide + locator + end[:12] + struct.pack("<2LH", 10, start, 0), "directory")


def test_preview_must_be_a_picture(tmp_path, written):
    *entries, _ = entries_of(written)
    refused(zipped([*entries, ("preview.png", b"<html>")]), "preview.png")
    with pytest.raises(ValueError, match=r"preview\.png"):
        write_bundle(tmp_path / "bad.pfz", MANIFEST, TENSORS, b"<html>")


# --- tampering with the manifest --------------------------------------------------------------


def test_newer_schema(written):
    error = refused(with_manifest(written, lambda m: m.update(schema_version=3, new="key")), "newer version")
    assert error.hint == "Upgrade profusion."


def delete(key):
    return lambda m: m.pop(key) and None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        *((delete(key), f"'{key}' is missing") for key in ("kind", "tool", "base", "config", "seed", "files")),
        *((delete(key), f"'{key}' is missing") for key in ("inputs", "parents")),
        (delete("schema_version"), "schema_version"),
        (lambda m: m.update(schema_version=0), "schema_version is 0"),
        (lambda m: m.update(schema_version=True), "schema_version is True"),
        (lambda m: m.update(schema_version="1"), "schema_version is '1'"),
        (lambda m: m.update(kind="cake"), "'cake'"),
        (lambda m: m.update(kind=["subject"]), "'kind'"),
        (lambda m: m.update(tool={"name": "x"}), "'tool'"),
        (lambda m: m.update(seed="7"), "seed"),
        (lambda m: m.update(seed=True), "seed"),
        (lambda m: m.update(base=None), "base"),
        (lambda m: m.update(parents=[PARENT[:-1]]), "parents"),
        (lambda m: m.update(parents=[PARENT.upper()]), "parents"),
        (lambda m: m.update(parents=[5]), "parents"),
        (lambda m: m.update(files={}), "files"),
        (lambda m: m["files"].update({"evil.safetensors": {}}), "'evil.safetensors'"),
        (lambda m: m["files"].update({"unet.safetensors": None}), "'unet.safetensors'"),
        (lambda m: m["files"]["unet.safetensors"].update(size=3), "3"),
        (lambda m: m["files"]["unet.safetensors"].update(size=-3), "size"),
        (lambda m: m["files"]["unet.safetensors"].update(sha256="00" * 32), "sha256"),
        (lambda m: m["files"]["unet.safetensors"].update(sha256=5), "sha256"),
        (lambda m: m["files"]["unet.safetensors"]["tensors"].pop("b") and None, "'unet.safetensors'"),
        (lambda m: m["files"]["unet.safetensors"]["tensors"]["b"].update(shape=[1, 5]), "'unet.safetensors'"),
        (
            lambda m: m["files"]["unet.safetensors"]["tensors"]["b"].update(shape=[-5]),
            "'b' in 'unet.safetensors' is {'dtype': 'U8', 'shape': [5]}, and {'dtype': 'U8', 'shape': [-5]} in",
        ),
        (lambda m: m["files"]["unet.safetensors"]["tensors"]["b"].update(shape=[5.0]), "shape"),
        (lambda m: m["files"]["unet.safetensors"]["tensors"]["b"].update(dtype="I64"), "'unet.safetensors'"),
        (lambda m: m["files"]["unet.safetensors"]["tensors"]["b"].update(dtype=["U8"]), "dtype"),
        (lambda m: m["files"]["unet.safetensors"]["tensors"].update(b=5), "'b'"),
        (lambda m: "[]", "not a table"),
        (lambda m: "", "not a table"),
        (lambda m: "{}", "schema_version"),
    ],
)
def test_manifest_values(written, change, word):
    refused(with_manifest(written, change), word)


def put(value, *keys):
    """A change that sets what lies at `keys`, or takes it away."""

    def change(table):
        for key in keys[:-1]:
            table = table[key]
        if value is None:
            del table[keys[-1]]
        else:
            table[keys[-1]] = value

    return change


CONTENTS = [
    (put(None, "base", "id"), "the id of 'base'"),
    (put(5, "base", "id"), "the id of 'base'"),
    (put(None, "base", "revision"), "the revision of 'base'"),
    (put(["main"], "base", "revision"), "the revision of 'base'"),
    (put(None, "base", "fingerprint"), "fingerprint"),
    (put("0123456789abcdef", "base", "fingerprint"), "fingerprint"),
    (put(5, "base", "fingerprint", "unet"), "fingerprint"),
    (put("0123456789abcde", "base", "fingerprint", "unet"), "fingerprint"),
    (put("0123456789abcdef0", "base", "fingerprint", "unet"), "fingerprint"),
    (put("0123456789ABCDEF", "base", "fingerprint", "unet"), "fingerprint"),
    (put("0123456789abcdef\n", "base", "fingerprint", "unet"), "fingerprint"),
    (put("photo", "inputs", 0), "'photo' among the inputs"),
    (put(None, "inputs", 0, "kind"), "among the inputs"),
    (put(5, "inputs", 0, "kind"), "among the inputs"),
    (put(None, "inputs", 0, "name"), "among the inputs"),
    (put(["a"], "inputs", 0, "name"), "among the inputs"),
    (put(None, "inputs", 0, "sha256"), "among the inputs"),
    (put("ab", "inputs", 0, "sha256"), "among the inputs"),
    (put(5, "inputs", 0, "sha256"), "among the inputs"),
    (put({"name": "a"}, "inputs"), "'inputs'"),
    (put(None, "promptnet"), "'promptnet'"),
    (put(["a"], "promptnet"), "'promptnet'"),
    (put(None, "config", "class_word"), "class_word"),
    (put(5, "config", "class_word"), "class_word"),
]


@pytest.mark.parametrize(("change", "word"), CONTENTS)
def test_contents_that_others_rely_on(tmp_path, written, change, word):
    refused(with_manifest(written, change), "has a manifest in which", word)
    manifest = copy.deepcopy(MANIFEST)
    change(manifest)
    with pytest.raises(ValueError, match=word):
        write_bundle(tmp_path / "bad.pfz", manifest, TENSORS)
    assert not (tmp_path / "bad.pfz").exists()


def without(data, file):
    """The bundle without `file`, which its manifest does not list either."""
    rest = [entry for entry in entries_of(data) if entry[0] != file]
    return with_manifest(zipped(rest), lambda manifest: manifest["files"].pop(file) and None)


@pytest.mark.parametrize(
    ("kind", "needed"),
    [("subject", SORTED[:1]), ("subject", SORTED[2:]), ("promptnet", SORTED[:1]), ("images", ("images.safetensors",))],
)
def test_files_that_a_kind_needs(tmp_path, kind, needed):
    path, (file,) = tmp_path / "me.pfz", needed
    files = TENSORS | {"images.safetensors": TENSORS["views.safetensors"]}
    manifest = MANIFEST | {"kind": kind}
    write_bundle(path, manifest, files)
    assert read_bundle(path.read_bytes(), "x.pfz").kind == kind
    refused(without(path.read_bytes(), file), f"'{file}' is not listed, which the kind '{kind}' needs")
    with pytest.raises(ValueError, match=f"'{file}' is not listed"):
        write_bundle(path, manifest, {name: blob for name, blob in files.items() if name != file}, force=True)


def test_what_a_kind_does_not_need(tmp_path):
    """Only what is read must be there: images know no PromptNet, and a base model may have no name."""
    path = tmp_path / "me.pfz"
    plain = MANIFEST | {"base": {"id": None, "revision": None, "fingerprint": {}}, "config": {}, "inputs": []}
    write_bundle(path, plain | {"kind": "promptnet"}, {file: TENSORS[file] for file in SORTED[:1]})
    assert read_bundle(path.read_bytes(), "x.pfz").files == SORTED[:1]
    del plain["promptnet"]
    write_bundle(path, plain | {"kind": "images"}, {"images.safetensors": TENSORS["views.safetensors"]}, force=True)
    assert read_bundle(path.read_bytes(), "x.pfz").files == ("images.safetensors",)


def bomb():
    lines = ['a0: &a0 ["lol"]'] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (bomb(), "anchors or aliases"),
        ("a: *b", "YAML"),
        ("a: !!python/object/apply:os.system ['false']", "YAML tag"),
        ("a: !!python/name:os.system", "YAML tag"),
        ("a: !!binary aGk=", "YAML tag"),
        ("a: !!set {b}", "YAML tag"),
        ("a: !!bool maybe", "YAML tag"),
        ("a: !!int ''", "YAML tag"),
        ("a: !!map ab", "YAML tag"),
        ("a: ! b", "YAML tag"),
        ("a: =", "plain data"),
        ('a: "\\uD800"', "YAML"),
        ("a: 2024-01-01", "plain data"),
        ("a: 2024-99-99", "plain data"),
        ("a: {<<: {b: 1}}", "not plain data"),
        ("5: a", "not a text"),
        ("[1, 2]: a", "not a text"),
        ("a: 0x_", "YAML"),
        ("a: 1" + ":59" * 50_000, "150001 digits"),
        ("a: 1" + "0" * 5000, "5001 digits"),
        ("kind: subject", "repeated"),
        ("a: {b: 1, b: 2}", "repeated"),
        ("a: " + "[" * 100_000, "nested more than 32 deep"),
        ("a: " + "[" * 500, "nested more than 32 deep"),
        ("a: " + "{b: " * 5000, "nested more than 32 deep"),
        ("a:\n" + "".join(f"{' ' * n}-\n" for n in range(1, 500)), "nested more than 32 deep"),
        ("---\nb: 1", "YAML"),
        ("a: [", "YAML"),
        ("a: \x00", "YAML"),
        ("a: " + "x" * (1 << 20), "1048576"),
        (f"a: [{'[],' * 30_000}]", "30000 values"),
        ("- - - - -\n" * 7000, "YAML"),
        ("\n---\na: 1\n", "more than one YAML document"),
    ],
)
def test_hostile_yaml(written, extra, word):
    refused(with_manifest(written, lambda m: yaml.safe_dump(m) + extra), word)


def test_hostile_yaml_without_the_c_library(written, monkeypatch):
    """The same promises where PyYAML was built without libyaml."""
    monkeypatch.setattr(plain_yaml, "_Loader", yaml.SafeLoader)
    assert read_bundle(written, "x.pfz").kind == "subject"
    for extra in (
        bomb(),
        "a: !!python/name:os.system",
        "kind: subject",
        "a: " + "[" * 5000,
        "a: [",
        "a: \x00",
        'a: "\\uD800"',
    ):
        refused(with_manifest(written, lambda m, extra=extra: yaml.safe_dump(m) + extra))


def test_manifest_that_is_no_utf8(written):
    refused(with_manifest(written, lambda m: b"\xff\xfe" + yaml.safe_dump(m).encode("utf-16-le")), "not UTF-8")


# --- tampering with the safetensors -----------------------------------------------------------

T = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
U = {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}


@pytest.mark.parametrize(
    ("blob", "word"),
    [
        (b"", "header claims"),
        (b"\1\0\0", "header claims"),
        (struct.pack("<Q", 100 << 20) + b"{}", "104857600"),
        (struct.pack("<Q", 100 << 20) + b" " * (100 << 20), "104857600"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header claims"),
        (raw_safetensors("nonsense"), "JSON"),
        (raw_safetensors("[]"), "JSON"),
        (raw_safetensors("[" * 100_000), "JSON"),
        (raw_safetensors("9" * 10_000), "JSON"),
        (raw_safetensors(" " + json.dumps({"t": T}), b"ab"), "JSON"),
        (raw_safetensors(json.dumps({"t": T, "u": T}).replace("u", "t"), b"ab"), "JSON"),
        (
            raw_safetensors('{"t": {"dtype": "U8", "dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}', b"ab"),
            "JSON",
        ),
        (raw_safetensors({}), "0 tensors"),
        (
            raw_safetensors({str(n): T | {"shape": [0], "data_offsets": [0, 0]} for n in range(20_001)}),
            "20001 tensors",
        ),
        (raw_safetensors({"t": T, "__metadata__": {"a": 5}}, b"ab"), "metadata"),
        (raw_safetensors({"t": 5}), "'t'"),
        (raw_safetensors({"t": T | {"more": 1}}, b"ab"), "'t'"),
        (raw_safetensors({"t": T | {"dtype": "F64", "shape": [1]}}, b"ab"), "F64"),
        (raw_safetensors({"t": T | {"shape": [-2]}}, b"ab"), "shape"),
        (raw_safetensors({"t": T | {"shape": [2.0]}}, b"ab"), "shape"),
        (raw_safetensors({"t": T | {"shape": [True, 2]}}, b"ab"), "shape"),
        (raw_safetensors({"t": T | {"shape": [1 << 62, 1 << 62]}}, b"ab"), "shape"),
        (raw_safetensors({"t": T | {"shape": [1 << 40, 1 << 40, 0], "data_offsets": [0, 0]}}), "shape"),
        (raw_safetensors(f'{{"t": [{"[]," * (1 << 21)}]}}'), "header claims"),
        (raw_safetensors({"t": T | {"data_offsets": [2, 0]}}, b"ab"), "'t'"),
        (raw_safetensors({"t": T | {"data_offsets": [0, 2, 2]}}, b"ab"), "offsets"),
        (raw_safetensors({"t": T | {"data_offsets": [0, 4]}}, b"abcd"), "size"),
        (raw_safetensors({"t": T}, b"abc"), "end"),
        (raw_safetensors({"t": T}, b"a"), "end"),
        (raw_safetensors({"t": U}, b"abcd"), "start"),
        (raw_safetensors({"t": T, "u": T}, b"ab"), "start"),
        (raw_safetensors({"t": T, "u": U | {"data_offsets": [3, 5]}}, b"abcde"), "start"),
        (raw_safetensors({"t": T, "": U}, b"abcd"), "name"),
        (raw_safetensors({"t\x1b[0m": T}, b"ab"), "name"),
    ],
)
def test_hostile_safetensors(written, blob, word):
    refused(with_tensors(written, blob), "'unet.safetensors'", word)
    with pytest.raises(ValueError, match=word):
        tensors.layout(blob)


def test_tensors_must_be_those_of_the_manifest(written):
    described = {"t": {"dtype": "U8", "shape": [2]}, "u": {"dtype": "U8", "shape": [2]}}
    blob = raw_safetensors({"u": U, "t": T, "__metadata__": {"format": "pt"}}, b"abcd")
    read_bundle(with_tensors(written, blob, described), "x.pfz")
    refused(with_tensors(written, blob, {"t": described["t"]}), "manifest")
    refused(with_tensors(written, blob, described | {"v": described["t"]}), "manifest")
    refused(with_tensors(written, blob, described | {"t": {"dtype": "U8", "shape": [2, 1]}}), "manifest")
    renamed = raw_safetensors({"x": U, "t": T}, b"abcd")
    refused(with_tensors(written, renamed, described), "manifest")
