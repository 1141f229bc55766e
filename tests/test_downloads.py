"""Downloads from the Hub, against a stand-in for it: told first, checked for room, and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import pytest
from rich.filesize import decimal

from profusion_cli.bundle import read_bundle
from profusion_cli.config import Config
from profusion_cli.errors import GoneError, OutputError, UnavailableError
from profusion_cli.jobs.configuration import configure
from profusion_cli.listener import Listener, hearing
from profusion_cli.runtime.downloads import Remote
from profusion_cli.runtime.finding import find_files
from profusion_cli.runtime.hub import Files, Source
from profusion_cli.runtime.needs import announce, base_needs, finetuning_needs, provide, stock_of
from profusion_cli.runtime.parts import DIFFUSERS_WEIGHTS
from tests.conftest import ok, run
from tests.hub_server import PIECE, StandIn

UNET = Source("some/model", None, "unet", "--base-model FOLDER")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Hears(Listener):
    """Notes, each with the bytes that had come when it was told."""

    def __init__(self, hub: StandIn) -> None:
        self.hub = hub
        self.notes: list[tuple[str, int]] = []

    def note(self, text: str) -> None:
        self.notes.append((text, sum(one.sent for one in self.hub.asked)))


def find_unet() -> Files:
    return find_files(UNET, "The UNet", ("config.json",), DIFFUSERS_WEIGHTS)


MIRROR = Source("other/model", "0123abc", "unet", "--base-model FOLDER")
MIRRORED = Source("some/model", None, "unet", "--base-model FOLDER", MIRROR)


def find_mirrored() -> Files:
    return find_files(MIRRORED, "The UNet", ("config.json",), DIFFUSERS_WEIGHTS)


def some_model() -> Config:
    return configure("tiny-random", None, {"base.id": "some/model"})


def room_of(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, free))


def partial_files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.incomplete"))


def test_the_size_of_a_part_is_told_before_its_first_byte(hub, base_folder):
    size = sum((base_folder / "unet" / name).stat().st_size for name in ("config.json", Path(WEIGHTS).name))
    hears = Hears(hub)
    with hearing(hears):
        find_unet()
        find_unet()
    assert hears.notes == [(f"Downloading the UNet of some/model: {decimal(size)}.", 0)]


def test_a_download_that_broke_off_goes_on(hub, base_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    whole = (base_folder / WEIGHTS).read_bytes()
    hub.cut_after = len(whole) // 2 // PIECE * PIECE
    with pytest.raises(UnavailableError, match="broke off after") as caught:
        find_unet()
    assert "goes on" in caught.value.hint
    (kept,) = partial_files(tmp_path)
    assert kept.read_bytes() == whole[: hub.cut_after]
    first, hub.cut_after, hub.down = hub.cut_after, None, False
    hears = Hears(hub)
    with hearing(hears):
        found = find_unet()
    assert hub.bodies() == [(WEIGHTS, 0, first), (WEIGHTS, first, len(whole) - first)]
    assert f"of which {decimal(first)}" in hears.notes[0][0]
    assert (found.folder / found.weights).read_bytes() == whole
    assert partial_files(tmp_path) == []
    assert any(one.authorized for one in hub.asked)
    assert not any(one.authorized for one in hub.asked if one.elsewhere), "the token stays at the Hub"


def test_a_server_that_knows_no_ranges_starts_over(hub, base_folder, tmp_path, monkeypatch):
    hub.cut_after = PIECE
    with pytest.raises(UnavailableError, match="broke off"):
        find_unet()
    hub.cut_after, hub.down, hub.ranges = None, False, False
    found = find_unet()
    assert (found.folder / found.weights).read_bytes() == (base_folder / WEIGHTS).read_bytes()


def test_an_interrupted_download_is_kept(hub, base_folder, tmp_path):
    size = (base_folder / WEIGHTS).stat().st_size

    def interrupt() -> None:
        time.sleep(0.5)  # until what was sent has come
        os.kill(os.getpid(), signal.SIGINT)

    hub.cut_after, hub.cut = 2 * PIECE, interrupt
    command = ("import", "some/model", "--subfolder", "unet", "-o", tmp_path / "x.pfz")
    result = run(*command)
    assert result.exit_code == 130, result.stderr
    assert f"{decimal(2 * PIECE)} of {decimal(size)} of the PromptNet are kept" in result.stderr
    assert [path.stat().st_size for path in partial_files(tmp_path)] == [2 * PIECE]
    hub.cut_after = None
    result = run(*command)
    assert result.exit_code == 8 and "not a PromptNet" in result.stderr  # it is a UNet, and all there
    assert hub.bodies() == [(WEIGHTS, 0, 2 * PIECE), (WEIGHTS, 2 * PIECE, size - 2 * PIECE)]


def test_a_download_that_does_not_fit_is_not_begun(hub, tmp_path, monkeypatch):
    room_of(1000, monkeypatch)
    result = run("import", "some/model", "--subfolder", "unet", "-o", tmp_path / "x.pfz")
    assert result.exit_code == 9, result.stderr
    assert "1.0 kB free" in result.stderr and "HF_HOME" in result.stderr
    assert not any(one.sent for one in hub.asked)


def test_what_is_kept_needs_no_room(hub, base_folder, monkeypatch):
    size = (base_folder / WEIGHTS).stat().st_size
    hub.cut_after = size // 2 // PIECE * PIECE
    with pytest.raises(UnavailableError, match="broke off"):
        find_unet()
    first, hub.cut_after, hub.down = hub.cut_after, None, False
    room_of(size - first + 10_000, monkeypatch)
    assert find_unet().weights


def test_a_damaged_download_is_thrown_away(hub, base_folder, tmp_path):
    hub.damaged = True
    with pytest.raises(UnavailableError, match="came damaged"):
        find_unet()
    assert partial_files(tmp_path) == []
    hub.damaged = False
    found = find_unet()
    assert (found.folder / found.weights).read_bytes() == (base_folder / WEIGHTS).read_bytes()


def test_a_partial_file_that_is_too_long_is_begun_anew(hub, base_folder, tmp_path):
    whole = (base_folder / WEIGHTS).read_bytes()
    hub.cut_after = PIECE
    with pytest.raises(UnavailableError, match="broke off"):
        find_unet()
    (kept,) = partial_files(tmp_path)
    kept.write_bytes(bytes(len(whole) + 1))
    hub.cut_after, hub.down = None, False
    found = find_unet()
    assert (found.folder / found.weights).read_bytes() == whole


def test_the_whole_is_told_once_before_the_first_part(hub, base_folder, monkeypatch):
    config = some_model()
    needs = base_needs(config)
    files = [need.source.subfolder for need in needs]
    assert len(set(files)) == len(needs) > 3
    hears = Hears(hub)
    with hearing(hears):
        announce(needs)
    ((text, _),) = hears.notes
    sizes = sum(stock_of(on_disk(need, base_folder)).size for need in needs)
    assert f"{decimal(sizes)} in {len(needs)} parts" in text
    room_of(sizes - 1, monkeypatch)
    with pytest.raises(OutputError, match="to be downloaded"):
        announce(needs)
    assert hub.bodies(("",)) == []


def test_all_is_fetched_before_anything_is_loaded(hub):
    needs = base_needs(some_model())
    provide(needs)
    assert all(stock_of(need).complete for need in needs)
    assert len(hub.bodies()) == 4
    hub.asked.clear()
    provide(needs)
    assert hub.asked == []


def on_disk(need, folder):
    from dataclasses import replace

    return replace(need, source=replace(need.source, id=str(folder)))


def test_commands_tell_the_whole_first(hub, photo, tmp_path, monkeypatch):
    """Of the base model and what inpaints; a part that two of them share counts once."""
    room_of(0, monkeypatch)
    arguments = ("--preset", "tiny-random", "--base-model", "some/model", "-o", tmp_path / "x.pfz")
    result = run("finetune", photo, *arguments, "--set", "augment.model.id=some/model")
    assert result.exit_code == 9 and "To download: " in result.stderr, result.stderr
    assert len(finetuning_needs(some_model(), augments=False)) == 6
    assert hub.bodies(("",)) == []


def test_shards_are_fetched_and_counted(hub, tmp_path):
    hub.folder = tmp_path / "served"
    folder = hub.folder / "unet"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    shards = [f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(shards):
        (folder / name).write_bytes(bytes([number]) * 3 * PIECE)
    index = {"metadata": {"total_size": 6 * PIECE}, "weight_map": {"a": shards[0], "b": shards[1]}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (need,) = base_needs(some_model(), ["unet"])
    assert (stock_of(need).complete, stock_of(need).missing) == (False, None)
    found = find_unet()
    assert found.weights.endswith(".index.json") and stock_of(need).complete
    (found.folder / shards[1]).unlink()
    assert (stock_of(need).complete, stock_of(need).missing) == (False, 3 * PIECE)


def test_small_files_are_left_to_the_hubs_client():
    assert not Remote("some/model", "config.json", "c", "a" * 40, 10).is_large
    assert Remote("some/model", "a.bin", "c", "a" * 64, 10).is_large


def test_where_a_repository_is_gone_its_mirror_is_asked(hub, base_folder, monkeypatch):
    hub.gone = ("some/model",)
    with pytest.raises(GoneError, match="'some/model/unet'"):
        find_unet()
    hears = Hears(hub)
    with hearing(hears):
        found = find_mirrored()
    assert found.source == MIRROR and found.revision == "0123456789abcdef0123456789abcdef01234567"
    assert (found.folder / found.weights).read_bytes() == (base_folder / WEIGHTS).read_bytes()
    ((text, _),) = hears.notes
    assert "other/model ('some/model' is gone from the Hub)" in text
    hub.asked.clear()
    assert find_mirrored() == found and hub.asked == [], "what is here is asked of nobody"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_mirrored() == found


def test_a_repository_that_is_there_or_cannot_be_asked_needs_no_mirror(hub):
    assert find_mirrored().source == MIRRORED
    assert hub.repositories() == {"some/model"}
    hub.asked.clear()
    hub.down = True
    elsewhere = Source("third/model", None, "unet", "--base-model FOLDER", MIRROR)
    with pytest.raises(UnavailableError, match="'third/model/unet'"):
        find_files(elsewhere, "The UNet", ("config.json",), DIFFUSERS_WEIGHTS)
    assert hub.repositories() == {"third/model"}


def test_where_both_are_gone_both_are_named(hub):
    hub.gone = ("some/model", "other/model")
    with pytest.raises(GoneError, match=r"'some/model/unet'.*'other/model/unet'"):
        find_mirrored()


def test_a_subject_made_on_the_mirror_says_so(hub, photo, tmp_path, monkeypatch):
    hub.gone = ("some/model",)
    places = ("base.random=null", "base.id=some/model", "base.mirror.id=other/model")
    settings = [word for place in places for word in ("--set", place)]
    quick = ("--preset", "tiny-random", "--no-augment", "--steps", 1)
    ok("finetune", photo, *quick, *settings, "-o", tmp_path / "me.pfz")
    made = read_bundle((tmp_path / "me.pfz").read_bytes(), "me.pfz").manifest
    assert made["base"]["id"] == "other/model" and made["config"]["base"]["mirror"]["id"] == "other/model"
    hub.asked.clear()
    ok("sample", tmp_path / "me.pfz", "S*", "--steps", 1, "-o", tmp_path / "x.png")
    assert hub.asked == []


def test_a_mirror_is_of_the_base_model_that_the_preset_names():
    assert configure("sd2", None, {}).base.mirror is not None
    assert configure("sd2", None, {"base.id": "some/model"}).base.mirror is None
    assert configure("sd2", None, {}, ["base.id=some/model"]).base.mirror is None
    both = configure("sd2", None, {}, ["base.id=some/model", "base.mirror.id=other/model"])
    assert both.base.mirror.id == "other/model"
