"""`pretrain` on tar shards: found, shared out, read, resumed; and what in them cannot be read."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from profusion_cli.config import PretrainConfig
from profusion_cli.errors import ConfigError, InputError, UnavailableError, UsageError
from profusion_cli.jobs.configuration import load_config
from profusion_cli.listener import Listener
from profusion_cli.runtime.pretraining import stream
from profusion_cli.runtime.pretraining.checkpoints import newest_checkpoint
from profusion_cli.runtime.pretraining.sources import PictureStream
from profusion_cli.runtime.pretraining.stream import ShardStream
from profusion_cli.shards import Shards, list_inputs, read_shard
from tests.conftest import draw_photo, ok, run
from tests.test_pretrain import COLOURS, TINY, bundle_of, differ, log_of, weights

ROOT = Path(__file__).resolve().parents[1]
HERE = ["--set", "pretrain.workers=0"]
"""No processes beside this one: forks of the tests' own take seconds."""


def write_shard(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of three pictures, each with a caption and metadata."""
    folder = tmp_path_factory.mktemp("shards")
    for i in range(4):
        files: dict[str, bytes] = {}
        for j in range(3):
            photo = draw_photo(folder / "photo.png", COLOURS[(i + j) % 6], (64, 40 + 3 * i + j)).read_bytes()
            files |= {f"{i}{j}.json": b"{}", f"{i}{j}.PNG" if j else f"{i}{j}.png": photo, f"{i}{j}.txt": b"a face"}
        write_shard(folder / f"{i:03}.tar", files)
    (folder / "photo.png").unlink()
    return folder


def paths_of(shards: Path) -> list[str]:
    return [str(path) for path in sorted(shards.glob("*.tar"))]


def test_shards_are_found(shards, tmp_path, monkeypatch):
    for source in ("{000..003}.tar", "*.tar", "00?.tar", "{000..001}.tar", "0{00,01}.tar"):
        found = list_inputs([f"{shards}/{source}"])
        assert isinstance(found, Shards) and list(found.paths) == paths_of(shards)[: len(found.paths)]
        assert len(found.paths) == (2 if "001" in source or "," in source else 4)
    assert list_inputs(paths_of(shards)).digest == list_inputs([f"{shards}/*.tar"]).digest
    assert list_inputs(paths_of(shards)[1:]).digest != list_inputs(paths_of(shards)).digest
    picture = str(draw_photo(tmp_path / "a.png"))
    for error, words, sources in (
        (InputError, "no shard '.*/004.tar'", [f"{shards}/{{002..004}}.tar"]),
        (InputError, "no shard 'pipe:touch here.tar'", ["pipe:touch here.tar"]),
        (InputError, "no shard", [f"{shards}/x*.tar"]),
        (InputError, "braces", [f"{shards}/{{000..003.tar"]),
        (UsageError, "a.png' is none", [*paths_of(shards), picture]),
    ):
        with pytest.raises(error, match=words):
            list_inputs(sources)
    for name in ("webdataset", "braceexpand"):
        with monkeypatch.context() as patch, pytest.raises(UnavailableError, match=name) as failure:
            patch.setitem(sys.modules, name, None)
            list_inputs(paths_of(shards))
        assert "pip install 'profusion[shards]'" in failure.value.hint


def test_what_is_read_of_a_shard(shards, tmp_path):
    path = paths_of(shards)[0]
    members = list(read_shard(path))
    assert [member.name for member in members] == [f"{path}/00.png", f"{path}/01.png", f"{path}/02.png"]
    assert all(member.data.startswith(b"\x89PNG") for member in members)
    whole = Path(path).read_bytes()
    cut, junk, without = (str(tmp_path / name) for name in ("cut.tar", "junk.tar", "without.tar"))
    Path(cut).write_bytes(whole[: whole.index(members[1].data) + 20])
    Path(junk).write_bytes(b"junk" * 500)
    write_shard(Path(without), {"a.txt": b"a face", "a.b.png": b"no name of a picture of a sample"})
    *before, last = read_shard(cut)
    assert len(before) == 1 and [one.data for one in before] == [one.data for one in members[: len(before)]]
    assert last.data is None and f"beyond its first {len(before)} picture" in last.problem
    for path, words in ((junk, "beyond its first 0"), (without, "holds no pictures"), (f"{cut}x", "No such file")):
        (only,) = read_shard(path)
        assert only.data is None and only.name == path and words in only.problem


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_shared_out(shards, workers):
    """Over two processes, and those that read for them: everything once in a round, and then in another order."""
    given = list_inputs(paths_of(shards))
    rounds = []
    for seed in (0, 1):
        read = []
        for rank in (0, 1):
            own = DataLoader(ShardStream(given, 64, (seed, 0), rank, 2), batch_size=None, num_workers=workers)
            read.append([one.name for one in islice(own, 6)])
            assert all(one.image.size == (64, 64) for one in islice(own, 6))
        assert sorted(read[0] + read[1]) == sorted(member.name for path in given.paths for member in read_shard(path))
        rounds.append(read)
    assert rounds[0] != rounds[1]


def test_every_round_has_another_order(shards):
    names = [one.name for one in islice(ShardStream(list_inputs(paths_of(shards)), 64, (0, 0), 0, 1), 24)]
    assert sorted(names[:12]) == sorted(names[12:]) == sorted(set(names)) and names[:12] != names[12:]


def test_fewer_shards_than_processes(shards):
    three = SimpleNamespace(num_processes=3, process_index=0)
    with pytest.raises(ConfigError, match=r"2 shard\(s\) cannot be shared out over 3 processes"):
        PictureStream(None, load_config("tiny-random"), three, list_inputs(paths_of(shards)[:2]), Listener())


def test_a_training_on_shards(shards, tmp_path):
    common = ["pretrain", *paths_of(shards), *TINY, "--steps", 4]
    options = ["--sample-every", 4, "--set", "pretrain.sample_steps=1"]
    result = ok(*common, *HERE, *options, "-o", tmp_path / "a.pfz", "--json")
    summary = json.loads(result.stdout)
    assert summary == {**summary, "shards": 4, "samples_read": 8, "unreadable": [], "unreadable_count": 0}
    assert "4 shard(s) of" in result.stderr
    work = tmp_path / "a.pfz.work"
    assert len(log_of(work)) == 4 and (work / "samples-00000004.png").exists() and not (work / "cache").exists()
    manifest = bundle_of(tmp_path / "a.pfz").manifest
    assert [entry["kind"] for entry in manifest["inputs"]] == ["dataset"]
    assert manifest["promptnet_source"] == {"weights": "pretrain", "steps": 4, "shards": 4}
    assert "4 steps" in ok("inspect", tmp_path / "a.pfz").stdout
    ok(*common, "--set", "pretrain.workers=1", "-o", tmp_path / "b.pfz")
    assert differ(weights(tmp_path / "a.pfz"), weights(tmp_path / "b.pfz")) == 0, "read by another process"
    ok(*common, *HERE, "--seed", 1, "-o", tmp_path / "c.pfz")
    assert differ(weights(tmp_path / "a.pfz"), weights(tmp_path / "c.pfz")) > 0
    result = run(*common, "--cache", tmp_path / "cache", "-o", tmp_path / "d.pfz")
    assert result.exit_code == 2 and "no cache" in result.stderr


def test_resuming_says_what_it_does(shards, tmp_path):
    common = ["pretrain", *TINY, *HERE, "-o", tmp_path / "x.pfz"]
    ok(*common, *paths_of(shards), "--steps", 2)
    result = ok(*common, *paths_of(shards), "--steps", 3, "--resume", "--force")
    assert "Going on after step 2" in result.stderr and "a new order from step 3 on" in result.stderr
    result = run(*common, *paths_of(shards)[:3], "--steps", 4, "--resume", "--force")
    assert result.exit_code == 3 and "shards=3 (it was 4)" in result.stderr


def test_what_cannot_be_read_is_told_and_counted(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "NAMED_UNREADABLE", 2)
    _, second, _ = read_shard(paths_of(shards)[0])
    whole = Path(paths_of(shards)[0]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(second.data) + 20])
    (tmp_path / "junk.tar").write_bytes(b"junk" * 500)
    picture = draw_photo(tmp_path / "a.png").read_bytes()
    write_shard(tmp_path / "broken.tar", {"a.png": picture, "b.jpg": b"junk", "c.png": picture[:100], "d.png": picture})
    arguments = ["pretrain", f"{tmp_path}/*.tar", *TINY, *HERE, "--steps", 6, "-o", tmp_path / "x.pfz", "--json"]
    result = ok(*arguments)
    summary = json.loads(result.stdout)
    names = [one["path"].removeprefix(f"{tmp_path}/") for one in summary["unreadable"]]
    assert names == ["broken.tar/b.jpg", "broken.tar/c.png", "cut.tar", "junk.tar"]
    assert summary["unreadable_count"] == 4 and summary["samples_read"] == 12
    assert result.stderr.count("Left out: ") == 2 and "counted alone" in result.stderr
    assert "4 pictures or shards could not be read whole" in result.stderr


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "junk.tar").write_bytes(b"junk" * 500)
    for workers in (0, 1):
        arguments = ["pretrain", tmp_path / "junk.tar", *TINY, "--set", f"pretrain.workers={workers}"]
        result = run(*arguments, "-o", tmp_path / f"{workers}.pfz")
        assert result.exit_code == InputError.exit_code
        assert "No picture in the 1 shard(s) can be read" in result.stderr


def test_a_process_that_reads_and_dies(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "decoded", lambda *_: os._exit(9))
    arguments = ["pretrain", *paths_of(shards), *TINY, "--set", "pretrain.workers=1"]
    result = run(*arguments, "--steps", 2, "-o", tmp_path / "x.pfz")
    assert result.exit_code == 6 and "A process that reads shards has ended" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_of_all_processes_saves_a_checkpoint(shards, tmp_path, number, code):
    """As a terminal and a scheduler send it; those that read say nothing of it."""
    arguments = ["pretrain", *paths_of(shards), *TINY, "--steps", 100_000, "-o", tmp_path / "x.pfz"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "profusion_cli", *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        log, end = tmp_path / "x.pfz.work" / "log.csv", time.monotonic() + 120
        while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < end:
            time.sleep(0.2)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert "go on with --resume" in said and "Traceback" not in said
    assert newest_checkpoint(tmp_path / "x.pfz.work").step >= 2


@pytest.mark.slow
def test_two_processes_read_different_shards(shards, tmp_path):
    arguments = ["pretrain", *paths_of(shards), *TINY, "--dtype", "float32", "--steps", 3, "--json"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "profusion_cli", *map(str, arguments), "-o", str(tmp_path / "x.pfz")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    summary = json.loads(line)
    assert summary["num_processes"] == 2 and summary["samples_read"] == 6 and summary["unreadable_count"] == 0


def test_the_default_reads_with_processes_of_its_own():
    assert PretrainConfig().workers == 2
