"""The cache of encoded pictures that `pretrain` fills: its size, its batches, interrupts, and what it changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from profusion_cli.errors import OutputError
from profusion_cli.runtime.pretraining import caching, encodings
from profusion_cli.runtime.pretraining.checkpoints import newest_checkpoint
from tests.conftest import draw_photo, ok, run
from tests.test_pretrain import COLOURS, TINY, differ, log_of, weights


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(COLOURS):
        draw_photo(folder / f"{i}.png", colour, (64, 48 + i))
    return folder


@pytest.fixture(scope="module")
def plain(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps with everything as it comes."""
    target = tmp_path_factory.mktemp("plain") / "net.pfz"
    ok("pretrain", pictures, *TINY, "--steps", 6, "-o", target)
    return target


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of both encoders was given; they are called in turn."""
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionModel

    calls: list[tuple[str, int]] = []
    encode, forward = AutoencoderKL.encode, CLIPVisionModel.forward

    def encoding(self, pixels):
        calls.append(("VAE", len(pixels)))
        return encode(self, pixels)

    def seeing(self, pixel_values):
        calls.append(("vision", len(pixel_values)))
        return forward(self, pixel_values=pixel_values)

    class Sizes(list):
        def __iter__(self) -> Iterator[int]:
            vae, vision = ([size for name, size in calls if name == wanted] for wanted in ("VAE", "vision"))
            assert vae == vision
            return iter(vae)

        def clear(self) -> None:
            calls.clear()

    monkeypatch.setattr(AutoencoderKL, "encode", encoding)
    monkeypatch.setattr(CLIPVisionModel, "forward", seeing)
    return Sizes()


def files_in(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.safetensors"))


def test_pictures_are_encoded_once_in_batches(pictures, plain, tmp_path, encoded):
    """By default in the work folder; once ever, damage aside, with whatever batches."""
    assert len(files_in(plain.with_name("net.pfz.work") / "cache")) == 6
    common, cache = ["pretrain", pictures, *TINY, "--steps", 6], tmp_path / "cache"
    at_once = ["--set", "pretrain.encode_at_once=4", "--cache", cache]
    ok(*common, *at_once, "-o", tmp_path / "a.pfz")
    assert list(encoded) == [4, 2] and not (tmp_path / "a.pfz.work" / "cache").exists()
    assert differ(weights(tmp_path / "a.pfz"), weights(plain)) < 1e-5
    encoded.clear()
    result = ok(*common, "--cache", cache, "-o", tmp_path / "b.pfz")
    assert list(encoded) == []
    assert "All 6 pictures are in the cache" in result.stderr
    assert differ(weights(tmp_path / "a.pfz"), weights(tmp_path / "b.pfz")) == 0
    files = files_in(cache)
    files[0].write_bytes(files[0].read_bytes()[:-5])  # cut off
    data = bytearray(files[1].read_bytes())
    data[-1] ^= 1  # one bit
    files[1].write_bytes(data)
    ok(*common, *at_once, "-o", tmp_path / "c.pfz")
    assert sorted(encoded) in ([4], [2], [2, 4])  # beside those that they were encoded with
    assert differ(weights(tmp_path / "a.pfz"), weights(tmp_path / "c.pfz")) == 0
    encoded.clear()
    ok(*common, "--set", "base.vision_antialias=true", "--cache", cache, "-o", tmp_path / "d.pfz")
    assert list(encoded) == [6], "another key"


def test_a_short_training_encodes_what_it_looks_at(tmp_path, encoded):
    (tmp_path / "many").mkdir()
    for i in range(20):
        draw_photo(tmp_path / "many" / f"{i}.png", size=(60 + i, 60))
    common = ["pretrain", tmp_path / "many", *TINY, "--set", "pretrain.encode_at_once=3", "-o", tmp_path / "x.pfz"]
    summary = json.loads(ok(*common, "--steps", 2, "--json").stdout)
    assert list(encoded) == [3, 3], "four pictures, in whole batches"
    assert summary["pictures"] == 20 and summary["cache"] == str(tmp_path / "x.pfz.work" / "cache")
    ok(*common, "--steps", 3, "--resume", "--force")
    assert list(encoded) == [3, 3], "all of the third step are there"


def test_the_size_is_told_first(pictures, tmp_path, encoded, monkeypatch):
    told = []
    look = caching.check_room

    def looking(folder, missing, used, size, listener):
        assert list(encoded) == []
        told.append((missing, used, size))
        look(folder, missing, used, size, listener)

    monkeypatch.setattr(caching, "check_room", looking)
    result = ok("pretrain", pictures, *TINY, "--steps", 6, "-o", tmp_path / "x.pfz")
    ((missing, used, size),) = told
    sizes = {path.stat().st_size for path in files_in(tmp_path / "x.pfz.work" / "cache")}
    assert (missing, used) == (6, 6) and {-(-one // 4096) * 4096 for one in sizes} == {size}
    assert f"The cache will take {6 * size / 1000:.1f} kB in '{tmp_path / 'x.pfz.work' / 'cache'}'" in result.stderr


def test_a_cache_that_does_not_fit_is_refused(pictures, tmp_path, encoded, monkeypatch):
    cache = tmp_path / "cache"
    common = ["pretrain", pictures, *TINY, "--steps", 6, "--cache", cache, "-o", tmp_path / "x.pfz"]
    with monkeypatch.context() as patch:
        patch.setattr(caching, "free_space", lambda folder: 100_000)
        result = run(*common)
        assert result.exit_code == OutputError.exit_code
        assert "needs 147.5 kB" in result.stderr and "100.0 kB are free" in result.stderr
        assert "--no-cache" in result.stderr
        assert list(encoded) == [] and not files_in(cache)
        few = ["--steps", 1, "--set", "pretrain.encode_at_once=2"]
        ok(*common[:-2], *few, "-o", tmp_path / "y.pfz")  # what one step uses fits
    ok(*common)


def test_encoding_goes_on_where_it_was(pictures, plain, tmp_path, encoded, monkeypatch):
    """A full disk, and an interrupt: what is there stays, and no bit comes out differently."""
    cache, write = tmp_path / "cache", encodings.atomic_output
    common = ["pretrain", pictures, *TINY, "--steps", 6, "--set", "pretrain.encode_at_once=2"]
    ok(*common, "-o", tmp_path / "whole.pfz")
    encoded.clear()

    def stopping_with(error: BaseException, count: int):
        def stop(path, force=False):
            if len(files_in(cache)) == count:
                raise error
            return write(path, force)

        return stop

    common += ["--cache", cache, "-o", tmp_path / "x.pfz"]
    with monkeypatch.context() as patch:
        patch.setattr(encodings, "atomic_output", stopping_with(OutputError("no space left."), 3))
        result = run(*common)
        assert result.exit_code == 9 and "no space left" in result.stderr and "--resume" in result.stderr
        patch.setattr(encodings, "atomic_output", stopping_with(KeyboardInterrupt(), 5))
        result = run(*common)
        assert result.exit_code == 130 and "goes on from there" in result.stderr
        assert "3 of 6 pictures are there already" in result.stderr
    assert newest_checkpoint(tmp_path / "x.pfz.work") is None
    assert list(encoded) == [2, 2, 2, 2]
    encoded.clear()
    ok(*common, "--resume")
    assert list(encoded) == [2]
    assert differ(weights(tmp_path / "x.pfz"), weights(tmp_path / "whole.pfz")) == 0


def test_a_full_disk_while_training_keeps_it(pictures, tmp_path, monkeypatch, plain):
    """Where what was cached is lost, and cannot be written again."""
    common = ["pretrain", pictures, *TINY, "--steps", 6, "-o", tmp_path / "x.pfz"]
    read = encodings.Encodings._from_disk
    seen = []

    def losing(self, index):
        seen.append(index)
        return None if len(seen) > 4 else read(self, index)

    def full(path, force=False):
        raise OutputError(f"'{path}' cannot be written: no space left on the device.")

    ok(*common[:-1], tmp_path / "y.pfz", "--cache", tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(encodings.Encodings, "_from_disk", losing)
        patch.setattr(encodings, "atomic_output", full)
        result = run(*common, "--cache", tmp_path / "cache")
    assert result.exit_code == 9 and "no space left" in result.stderr
    assert newest_checkpoint(tmp_path / "x.pfz.work").step == 2  # the fifth and sixth are needed by step 3
    ok(*common, "--cache", tmp_path / "cache", "--resume")
    assert differ(weights(tmp_path / "x.pfz"), weights(plain)) == 0


def test_without_a_cache_pictures_are_encoded_once_an_epoch(pictures, plain, tmp_path, encoded, monkeypatch):
    """Identities of 4 and 2, batches of 2, and room for three encodings: two epochs."""
    monkeypatch.setattr(encodings, "MEMORY_BYTES", 60_000)
    names = sorted(pictures.glob("*.png"))
    (tmp_path / "set.jsonl").write_text(
        "\n".join(json.dumps({"file_name": str(name), "identity": int(i > 3)}) for i, name in enumerate(names))
    )
    common = [*TINY, "--steps", 6, "--no-cache"]
    ok("pretrain", tmp_path / "set.jsonl", *common, "-o", tmp_path / "x.pfz")
    assert 6 < sum(encoded) <= 12
    assert not (tmp_path / "x.pfz.work" / "cache").exists()
    ok("pretrain", pictures, *common, "-o", tmp_path / "y.pfz")
    assert differ(weights(tmp_path / "y.pfz"), weights(plain)) < 1e-5, "the same as with a cache, but for rounding"
    contradicting = ["--cache", tmp_path / "cache", "-o", tmp_path / "z.pfz"]
    assert run("pretrain", pictures, *common, *contradicting).exit_code == 2


def test_half_precision_on_the_disk_trains_to_the_same(pictures, plain, tmp_path, monkeypatch):
    """Losses within 0.1 % of those of a training on encodings in float32."""

    def exact(base, squares, at_once):
        parts = (*base.encode_moments(squares, at_once), base.encode_image_tokens(squares, at_once))
        return [dict(zip(encodings.NAMES, tensors, strict=True)) for tensors in zip(*parts, strict=True)]

    monkeypatch.setattr(encodings, "encode_squares", exact)
    ok("pretrain", pictures, *TINY, "--steps", 6, "--no-cache", "-o", tmp_path / "x.pfz")
    curves = [log_of(path.with_name(f"{path.name}.work")) for path in (plain, tmp_path / "x.pfz")]
    half, single = (torch.tensor([float(row["loss"]) for row in curve]) for curve in curves)
    assert 0 < ((half - single).abs() / single).max() < 1e-3
