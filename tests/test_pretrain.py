"""`pretrain`: what is learnt from what, checkpoints, resuming, several processes, and bad input."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from profusion_cli import app
from profusion_cli.bundle import Bundle, read_bundle
from profusion_cli.config import PretrainConfig
from profusion_cli.dataset import Dataset, epoch_order, list_pictures, load_square, make_dataset, scan_pictures
from profusion_cli.errors import ConfigError, DeviceError, InputError, OutputError
from profusion_cli.images import encode_png, read_record
from profusion_cli.runtime import training
from profusion_cli.runtime.device import epoch_generator
from profusion_cli.runtime.fitting import Step
from profusion_cli.runtime.pretraining import checkpoints, loop
from profusion_cli.runtime.pretraining import run as whole_run
from profusion_cli.runtime.pretraining.checkpoints import Checkpoint, check_settings, newest_checkpoint, save_checkpoint
from profusion_cli.runtime.pretraining.log import Log
from profusion_cli.runtime.pretraining.trainer import Average, warmed_up
from profusion_cli.runtime.pretraining.work import claimed_work
from profusion_cli.runtime.processes import lost_processes
from tests.conftest import draw_photo, like_float16, ok, run

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--preset", "tiny-random", "--batch-size", 2, "--lr", "1e-3", "--save-dtype", "float32"]
COLOURS = ("tan", "red", "olive", "navy", "white", "black")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deeper").mkdir()
    for i, colour in enumerate(COLOURS):
        draw_photo(folder / ("deeper" if i % 2 else "") / f"{i}.png", colour, (64, 48 + i))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> tuple[Path, dict]:
    """Six steps, a checkpoint every two of which two are kept, a sheet every three."""
    target = tmp_path_factory.mktemp("trained") / "net.pfz"
    options = ["--steps", 6, "--checkpoint-every", 2, "--sample-every", 3, "--set", "pretrain.sample_steps=2"]
    result = ok("pretrain", pictures, *TINY, *options, "--set", "finetune.steps=1", "-o", target, "--json")
    return target, json.loads(result.stdout)


def bundle_of(path):
    return read_bundle(path.read_bytes(), path.name)


def weights(path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(bytes(bundle_of(path).read("promptnet.safetensors")))


def log_of(work: Path) -> list[dict[str, str]]:
    with (work / "log.csv").open() as file:
        return list(csv.DictReader(file))


def differ(one: dict, other: dict) -> float:
    assert set(one) == set(other)
    return max((one[name] - other[name]).abs().max().item() for name in one)


# --- the result ----------------------------------------------------------------------------------------------


def test_what_is_written(trained, pictures):
    target, summary = trained
    work = target.with_name("net.pfz.work")
    names = {path.name for path in work.iterdir() if path.is_file()}
    checkpoint_names = {f"checkpoint-0000000{step}.safetensors" for step in (4, 6)}
    assert names == {"log.csv", "samples-00000003.png", "samples-00000006.png", *checkpoint_names}
    assert summary == {
        **summary,
        "path": str(target),
        "sha256": bundle_of(target).sha256,
        "steps": 6,
        "resumed_from": 0,
        "pictures": 6,
        "paired": 0,
        "unreadable": [],
        "num_processes": 1,
        "work": str(work),
        "log": str(work / "log.csv"),
        "checkpoint": str(work / "checkpoint-00000006.safetensors"),
    }
    assert summary["seconds"] > 0
    assert summary["samples_per_second"] > 0
    manifest = bundle_of(target).manifest
    assert manifest["kind"] == "promptnet"
    assert set(manifest["base"]["fingerprint"]) == {"unet", "text_encoder", "vision"}
    assert [entry["name"] for entry in manifest["inputs"]] == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
    assert manifest["config"]["pretrain"]["steps"] == 6
    rows = log_of(work)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert float(rows[-1]["loss"]) == summary["last_loss"]
    assert all(float(row["grad_norm"]) > 0 and float(row["samples_per_second"]) > 0 for row in rows)
    state = newest_checkpoint(work)
    assert state.step == 6
    assert differ(state.part("ema"), weights(target)) == 0  # the average is what is saved
    assert differ(state.part("promptnet"), weights(target)) > 1e-4
    assert Image.open(work / "samples-00000006.png").width > 500
    parameters, record = read_record((work / "samples-00000006.png").read_bytes(), "sheet")
    assert parameters.startswith("a photo of S*") and record["prompt"] == "a photo of S*"
    assert record["pretrain"] == {"step": 6} and record["sample"]["steps"] == 2


def test_finetune_takes_the_result(trained, photo, tmp_path):
    target, _ = trained
    common = ["finetune", photo, "--preset", "tiny-random", "--steps", 1, "--promptnet"]
    ok(*common, "-", "-o", tmp_path / "me.pfz", input=target.read_bytes())
    assert bundle_of(tmp_path / "me.pfz").manifest["parents"] == [bundle_of(target).sha256]


def test_a_sheet_changes_nothing(trained, pictures, tmp_path):
    """Nor do checkpoints; and the same command gives the same weights."""
    ok("pretrain", pictures, *TINY, "--steps", 6, "-o", tmp_path / "x.pfz")
    assert differ(weights(trained[0]), weights(tmp_path / "x.pfz")) == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--lr", "1e-2"],
        ["--warmup-steps", 3],
        ["--ema-decay", 0],
        ["--embedding-l2", 0.5],
        ["--batch-size", 3],
        ["--seed", 1],
        ["--set", "pretrain.weight_decay=0.9"],
        ["--set", "pretrain.max_grad_norm=0.001"],
        ["--set", "concept_prompt=a painting of S*"],
    ],
)
def test_every_option_does_something(options, pictures, tmp_path, trained):
    common = ["pretrain", pictures, "--preset", "tiny-random", "--batch-size", 2, "--lr", "1e-3", "--steps", 2]
    plain = trained[0].with_name("plain.pfz")
    if not plain.exists():
        ok(*common, "--save-dtype", "float32", "-o", plain)
    ok(*common, "--save-dtype", "float32", *options, "-o", tmp_path / "x.pfz")
    assert differ(weights(plain), weights(tmp_path / "x.pfz")) > 0


def test_warm_up_and_average():
    config = PretrainConfig(learning_rate=1.0, warmup_steps=4)
    assert [warmed_up(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmed_up(PretrainConfig(learning_rate=1.0), 0) == 1.0
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0.0)
    average = Average(network, 0.5)
    network.weight.data.fill_(1.0)
    average.update(network, 1)  # decay 1/10
    assert average.weights["weight"].item() == pytest.approx(0.9)
    average.update(network, 100)  # decay 0.5
    assert average.weights["weight"].item() == pytest.approx(0.95)


# --- which pictures ------------------------------------------------------------------------------------------


def order_of(dataset: Dataset, epoch: int) -> list[tuple[int, int]]:
    generator = epoch_generator(0, epoch)
    return epoch_order(
        dataset,
        lambda count: torch.randperm(count, generator=generator).tolist(),
        lambda count: int(torch.randint(count, (), generator=generator)),
    )


def people(**identities: int) -> Dataset:
    names = tuple(name for name, count in identities.items() for _ in range(count))
    indices = tuple(range(len(names)))
    return Dataset(tuple(map(str, indices)), ("0" * 64,) * len(names), indices, ((),) * len(names), names)


def test_the_reference_is_another_picture_of_the_same_identity():
    dataset = people(ann=2, bob=5, eve=1, joe=9)
    seen = {}
    for epoch in range(60):
        order = order_of(dataset, epoch)
        assert sorted(target for target, _ in order) == list(range(17))  # every picture once
        assert sorted(reference for _, reference in order) == list(range(17))
        for target, reference in order:
            assert dataset.identities[target] == dataset.identities[reference]
            assert (target == reference) == (dataset.identities[target] == "eve")
            seen.setdefault(target, set()).add(reference)
        where = {target: i for i, (target, _) in enumerate(order)}
        assert max(abs(where[target] - where[reference]) for target, reference in order) <= 2
    assert seen[8] == set(range(8, 17)) - {8}  # every other picture of joe's, some time
    assert order_of(dataset, 0) == order_of(dataset, 0) != order_of(dataset, 1)


def test_alone_every_picture_is_its_own_reference():
    dataset = Dataset(("a", "b", "c"), ("0" * 64,) * 3, (0, 1, 2), ((),) * 3, (None,) * 3)
    assert sorted(order_of(dataset, 0)) == [(0, 0), (1, 1), (2, 2)]
    assert len({tuple(order_of(dataset, epoch)) for epoch in range(30)}) == 6


def test_metadata(pictures, tmp_path):
    lines = [
        {"file_name": "pictures/0.png", "ref_img": ["pictures/2.png", "pictures/4.png"]},
        {"file_name": "pictures/2.png", "identity": "ann"},
        {"file_name": "pictures/deeper/1.png", "identity": "ann"},
    ]
    (tmp_path / "pictures").symlink_to(pictures)
    path = tmp_path / "set.jsonl"
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    listing = list_pictures([str(path)])
    assert [Path(name).name for name in listing.paths] == ["0.png", "2.png", "4.png", "1.png"]
    dataset = make_dataset(listing, scan_pictures(listing.paths))
    assert len(dataset) == 3  # 4.png is a reference only
    seen = {pair for epoch in range(20) for pair in order_of(dataset, epoch)}
    assert seen == {(0, 1), (0, 2), (1, 3), (3, 1)}
    assert dataset.paired() == 3


def test_metadata_of_other_programs(pictures, tmp_path):
    """A byte order mark, Windows line ends, and a line separator inside a text."""
    line = json.dumps({"file_name": str(pictures / "0.png"), "identity": "a\u2028b"}, ensure_ascii=False)
    path = tmp_path / "set.jsonl"
    path.write_bytes(f"\ufeff{line}\r\n".encode())
    assert list_pictures([str(path)]).identities == ("a\u2028b",)


def test_the_batches_use_the_reference(pictures, tmp_path, monkeypatch):
    (tmp_path / "set.jsonl").write_text(
        "\n".join(json.dumps({"file_name": str(pictures / f"{i}.png"), "identity": "x"}) for i in (0, 2))
    )
    seen = []
    original = training.TrainingObjective.forward
    monkeypatch.setattr(
        training.TrainingObjective, "forward", lambda self, batch: seen.append(batch) or original(self, batch)
    )
    ok("pretrain", tmp_path / "set.jsonl", *TINY, "--steps", 1, "-o", tmp_path / "x.pfz")
    (batch,) = seen
    # two pictures, each the other's reference; the VAE's own noise is small
    near = (batch.ref_latents - batch.target_latents.flip(0)).square().mean()
    far = (batch.ref_latents - batch.target_latents).square().mean()
    assert near < far
    assert near > 0


def test_more_pictures_than_a_manifest_lists():
    dataset = Dataset(*((tuple(f"{i}" for i in range(1001)),) * 2), (0,), ((),), (None,))
    (entry,) = dataset.inputs("faces")
    assert entry["name"] == "faces"
    assert len(entry["sha256"]) == 64


def test_unreadable_pictures_are_counted_and_named(pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    (tmp_path / "cut.png").write_bytes((pictures / "0.png").read_bytes()[:200])
    arguments = ["pretrain", pictures, tmp_path, *TINY, "--steps", 1, "-o", tmp_path / "x.pfz"]
    result = ok(*arguments, "--json")
    assert "2 of 8 pictures cannot be read" in result.stderr
    assert "bad.jpg" in result.stderr
    assert "cut.png" in result.stderr
    unreadable = json.loads(result.stdout)["unreadable"]
    assert [Path(one["path"]).name for one in unreadable] == ["bad.jpg", "cut.png"]
    assert "not a picture" in unreadable[0]["problem"]


def test_a_picture_that_has_changed_meanwhile_is_told_of(tmp_path):
    path = draw_photo(tmp_path / "a.png")
    listing = list_pictures([str(path)])
    dataset = make_dataset(listing, scan_pictures(listing.paths))
    assert load_square(dataset, 0, 64).size == (64, 64)
    draw_photo(path, "red")
    with pytest.raises(InputError, match=r"a\.png' has changed while the training ran"):
        load_square(dataset, 0, 64)


def test_bad_input(pictures, tmp_path, monkeypatch):
    """All of these before a model is loaded."""
    monkeypatch.setattr(whole_run, "Trainer", lambda *_: pytest.fail("a model is loaded"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "bad.png").write_bytes(b"junk")
    (tmp_path / "missing.jsonl").write_text('{"file_name": "gone.png", "ref_img": ["also.png"]}\n')
    (tmp_path / "broken.jsonl").write_text('{"file_name": "a.png"}\n{oops\n')
    (tmp_path / "nameless.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "blank.jsonl").write_text("\n")
    one = json.dumps(str(pictures / "0.png"))
    (tmp_path / "twins.jsonl").write_text("".join(f'{{"file_name": {one}, "identity": {i}}}\n' for i in (1, 2)))
    (tmp_path / "target.jsonl").write_text(f'{{"file_name": "junk/bad.png", "ref_img": {one}}}\n')
    cases = [
        ([tmp_path / "empty"], 5, "holds no pictures"),
        ([tmp_path / "none"], 5, "no file or folder"),
        ([tmp_path / "missing.jsonl"], 5, "gone.png"),
        ([tmp_path / "broken.jsonl"], 5, "Line 2"),
        ([tmp_path / "nameless.jsonl"], 5, "file_name"),
        ([tmp_path / "blank.jsonl"], 5, "names no pictures"),
        ([tmp_path / "twins.jsonl"], 5, "an earlier line '1'"),
        ([tmp_path / "junk"], 5, "None of the 1"),
        ([tmp_path / "target.jsonl"], 5, "None of the 1"),
        ([tmp_path / "missing.jsonl", pictures], 2, "alone"),
        (["-"], 2, "standard input"),
        ([pictures, "--batch-size", 0], 3, "batch_size"),
        ([pictures, "--ema-decay", 1], 3, "ema_decay"),
    ]
    for i, (arguments, code, words) in enumerate(cases):
        result = run("pretrain", *arguments, "--preset", "tiny-random", "-o", tmp_path / f"{i}.pfz")
        assert result.exit_code == code, (arguments, result.stderr)
        assert words in result.stderr
        assert not (tmp_path / f"{i}.pfz.work").exists()
    assert run("pretrain", pictures, "--preset", "tiny-random", "-o", "-").exit_code == 2  # no --work


def test_bad_input_costs_no_earlier_training(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"junk")
    save_checkpoint(tmp_path, Checkpoint(1, {}, {}), 2)
    arguments = ["pretrain", tmp_path / "bad.png", *TINY, "--work", tmp_path, "-o", tmp_path / "x.pfz"]
    assert run(*arguments).exit_code == 9  # neither --force nor --resume
    assert run(*arguments, "--force").exit_code == 5
    assert newest_checkpoint(tmp_path).step == 1


# --- checkpoints and resuming --------------------------------------------------------------------------------

DRIVER = """
import os, signal, sys
from profusion_cli.app import app
from profusion_cli.runtime.pretraining import checkpoints, loop, run
from tests.conftest import ok

def child(arguments, patch=lambda: None):
    pid = os.fork()
    if pid == 0:
        patch()
        try:
            app([str(argument) for argument in arguments])
        except SystemExit as end:
            os._exit(end.code or 0)
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after(step):
    write = loop.Log.write
    def dying(self, done, rate):
        write(self, done, rate)
        if done.number == step:
            die()
    loop.Log.write = dying

def die_in_checkpoint():
    write = checkpoints._write_safetensors
    def dying(file, tensors, metadata):
        if list(checkpoints.Path(WORK).glob("checkpoint-*")):
            file.write(b"half")
            file.flush()
            die()
        write(file, tensors, metadata)
    checkpoints._write_safetensors = dying

def die_before_bundle():
    run.make_bundle = die

pictures, folder = sys.argv[1:]
common = ["pretrain", pictures, "--preset", "tiny-random", "--batch-size", 2, "--lr", "1e-3", "--steps", 5,
          "--checkpoint-every", 2, "-q"]
ok(*common, "-o", f"{folder}/whole.pfz")  # in this process: those forked from it find all that it has loaded
cases = {"early": lambda: die_after(1), "later": lambda: die_after(3), "saving": die_in_checkpoint,
         "last": die_before_bundle}
for name, patch in cases.items():
    WORK = f"{folder}/{name}.pfz.work"
    arguments = [*common, "-o", f"{folder}/{name}.pfz"]
    assert child(arguments, patch) == -signal.SIGKILL, name
    assert not os.path.exists(f"{folder}/{name}.pfz")
    if name == "later":
        assert child(arguments) == 9  # neither --resume nor --force
    assert child([*arguments, "--resume"]) == 0, name
"""


@pytest.mark.slow
def test_killed_and_resumed_ends_bit_identical(pictures, tmp_path):
    """Before the first checkpoint, between two, while one is written, and before the bundle is."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", DRIVER, str(pictures), str(tmp_path)], check=True, env=environment, timeout=300
    )
    whole = (tmp_path / "whole.pfz").read_bytes()
    curve = [(row["step"], row["loss"]) for row in log_of(tmp_path / "whole.pfz.work")]
    for name in ("early", "later", "saving", "last"):
        assert (tmp_path / f"{name}.pfz").read_bytes() == whole, name
        work = tmp_path / f"{name}.pfz.work"
        assert [(row["step"], row["loss"]) for row in log_of(work)] == curve
        assert not list(work.glob(".*")), "what the killed writer left behind is gone"
        assert [path.name for path in checkpoints.checkpoint_files(work)] == [
            "checkpoint-00000004.safetensors",
            "checkpoint-00000005.safetensors",
        ]


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, Checkpoint(step, {}, {"promptnet.a": torch.full((5, 3), float(step))}), 2)
    newest = tmp_path / "checkpoint-00000003.safetensors"
    assert len(list(tmp_path.iterdir())) == 2
    assert newest_checkpoint(tmp_path).part("promptnet")["a"].equal(torch.full((5, 3), 3.0))
    whole = newest.read_bytes()
    told = []
    for broken in (whole[:-1], whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], b""):
        newest.write_bytes(broken)
        assert newest_checkpoint(tmp_path, told.append).step == 2
    assert told == [newest] * 3
    save_checkpoint(tmp_path, Checkpoint(1, {}, {}), 1)
    assert newest_checkpoint(tmp_path).step == 2  # what is damaged does not count as kept
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="all 3 are damaged"):
        newest_checkpoint(tmp_path)


def test_one_training_at_a_time(tmp_path):
    with (
        claimed_work(tmp_path / "work", False, False),
        pytest.raises(OutputError, match="running"),
        claimed_work(tmp_path / "work", False, True),
    ):
        pass
    assert not (tmp_path / "work").exists()  # nothing was put into it


def test_resuming_with_another_configuration(trained, pictures, tmp_path):
    target, _ = trained
    work = target.with_name("net.pfz.work")
    common = ["pretrain", pictures, *TINY, "--work", work, "--resume", "-o", tmp_path / "x.pfz"]
    result = run(*common, "--steps", 6, "--lr", "1e-4", "--seed", 3)
    assert result.exit_code == 3
    assert "pretrain.learning_rate=0.0001 (it was 0.001)" in result.stderr
    assert "seed=3 (it was 0)" in result.stderr
    assert "weight_decay" not in result.stderr
    result = run(*common, "--steps", 5)
    assert result.exit_code == 3
    assert "6 steps are done" in result.stderr
    assert "damaged" not in result.stderr
    result = run("pretrain", pictures / "deeper", *common[2:], "--steps", 6)
    assert result.exit_code == 3
    assert "pictures=3 (it was 6)" in result.stderr
    with pytest.raises(ConfigError, match=r"b=None \(it was 1\)"):
        check_settings({"a": 1, "b": 1}, {"a": 1}, "work")
    check_settings({"a": 1.0}, {"a": 1.0}, "work")


def test_more_steps_are_the_same_as_all_at_once(pictures, tmp_path, trained):
    ok("pretrain", pictures, *TINY, "--steps", 3, "-o", tmp_path / "x.pfz")
    result = run("pretrain", pictures, *TINY, "--steps", 6, "--resume", "-o", tmp_path / "x.pfz")
    assert result.exit_code == 9  # the bundle is there
    ok("pretrain", pictures, *TINY, "--steps", 6, "--resume", "--force", "-o", tmp_path / "x.pfz")
    assert differ(weights(tmp_path / "x.pfz"), weights(trained[0])) == 0
    ok("pretrain", pictures, *TINY, "--steps", 1, "--force", "-o", tmp_path / "x.pfz")
    assert len(log_of(tmp_path / "x.pfz.work")) == 1  # anew


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_saves_a_checkpoint(number, code, pictures, tmp_path, monkeypatch, trained):
    original = training.TrainingObjective.forward
    calls = []

    def interrupting(self, batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return original(self, batch)

    common = ["pretrain", pictures, *TINY, "--steps", 6, "-o", tmp_path / "x.pfz"]
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingObjective, "forward", interrupting)
        result = run(*common)
    assert result.exit_code == code
    assert "--resume" in result.stderr
    assert signal.getsignal(number) is handler
    assert newest_checkpoint(tmp_path / "x.pfz.work").step == 3
    assert not (tmp_path / "x.pfz").exists()
    ok(*common, "--resume")
    assert differ(weights(tmp_path / "x.pfz"), weights(trained[0])) == 0


def test_a_second_interrupt_ends_at_once(pictures, tmp_path, monkeypatch):
    def interrupting(self, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still here")

    monkeypatch.setattr(training.TrainingObjective, "forward", interrupting)
    result = run("pretrain", pictures, *TINY, "--steps", 6, "-o", tmp_path / "x.pfz")
    assert result.exit_code == 130
    assert newest_checkpoint(tmp_path / "x.pfz.work") is None


def test_a_divergence_keeps_the_last_checkpoint(pictures, tmp_path, monkeypatch):
    original = training.diffusion_loss
    calls = []
    monkeypatch.setattr(
        training,
        "diffusion_loss",
        lambda *a: calls.append(1) or original(*a) * (float("nan") if len(calls) == 4 else 1.0),
    )
    common = ["pretrain", pictures, *TINY, "--steps", 6, "--checkpoint-every", 2, "-o", tmp_path / "x.pfz"]
    result = run(*common)
    assert result.exit_code == 7
    assert "step 4" in result.stderr
    state = newest_checkpoint(tmp_path / "x.pfz.work")
    assert state.step == 2
    assert all(value.isfinite().all() for value in state.tensors.values())


def test_a_step_that_overflows_is_done_again(pictures, tmp_path, monkeypatch, trained):
    """As float16 does it on a GPU, with the scale that the checkpoint remembers."""
    common = ["pretrain", pictures, *TINY, "-o", tmp_path / "x.pfz"]
    like_float16(monkeypatch, whole_run)
    assert "Step 1: gradients overflowed" in ok(*common, "--steps", 2).stderr
    assert newest_checkpoint(tmp_path / "x.pfz.work").scaler["scale"] == 32768.0
    assert "overflowed" not in ok(*common, "--steps", 3, "--resume", "--force").stderr
    losses, plain = (
        [float(row["loss"]) for row in log_of(path.with_name(f"{path.name}.work"))]
        for path in (tmp_path / "x.pfz", trained[0])
    )
    assert losses == pytest.approx(plain[:3], rel=1e-4)


# --- the log -------------------------------------------------------------------------------------------------


def logged(work: Path, start: int, steps: range) -> None:
    book = Log(work, start)
    for number in steps:
        book.write(Step(number, start + number / 8, 0.5, 0.25), 3.0)
    book.picture(steps[-1], encode_png(Image.new("RGB", (4, 3)), "", {}))
    book.close()


def test_the_log_goes_on_where_the_checkpoint_is(tmp_path):
    logged(tmp_path, 0, range(1, 6))
    with (tmp_path / "log.csv").open("ab") as file:
        file.write(b"2,0.2")  # cut off
    logged(tmp_path, 2, range(3, 5))
    with (tmp_path / "log.csv").open("ab") as file:
        file.write(b"\xff\n")
    logged(tmp_path, 4, range(5, 6))
    assert [(row["step"], row["loss"]) for row in log_of(tmp_path)] == [
        *[("1", "0.125"), ("2", "0.25"), ("3", "2.375"), ("4", "2.5"), ("5", "4.625")]
    ]


def events_of(work: Path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(work / "tensorboard"))
    events.Reload()
    return events


def test_tensorboard_goes_on_where_the_checkpoint_is(tmp_path):
    logged(tmp_path, 0, range(1, 6))
    logged(tmp_path, 2, range(3, 5))
    events = events_of(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        *[(1, 0.125), (2, 0.25), (3, 2.375), (4, 2.5)]
    ]
    assert [(event.step, event.width, event.height) for event in events.Images("samples")] == [(4, 4, 3)]


def test_tensorboard_holds_what_the_log_holds(trained):
    work = trained[0].with_name("net.pfz.work")
    events, rows = events_of(work), log_of(work)
    for name in ("loss", "learning_rate", "grad_norm", "samples_per_second"):
        written = [float(row[name]) for row in rows]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(written, rel=1e-3)
    assert [event.step for event in events.Images("samples")] == [3, 6]


def test_the_log_without_tensorboard(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    logged(tmp_path, 0, range(1, 3))
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "samples-00000002.png"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_while_logging(tmp_path):
    book = Log(tmp_path, 0)
    with open("/dev/full", "w") as book._file:
        book._writer = csv.writer(book._file)
        with pytest.raises(OutputError, match=r"log in .* cannot be written") as failure:
            book.write(Step(1, 0.5, 0.5, 0.5), 1.0)
        assert "--resume" in failure.value.hint
        book.close()


def test_a_full_disk_at_the_end_keeps_the_training(pictures, tmp_path, monkeypatch):
    common = ["pretrain", pictures, *TINY, "--steps", 1, "-o", tmp_path / "x.pfz"]

    def full(*_, **__):
        raise OutputError("no space left.", "Choose another -o.")

    (tmp_path / "x.pfz.work").mkdir()
    (tmp_path / "x.pfz.work" / "samples-of-mine.png").write_text("no training's")
    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "save", full)
        result = run(*common)
    assert result.exit_code == 9
    assert "--resume" in result.stderr
    assert json.loads(ok(*common, "--resume", "--json").stdout)["resumed_from"] == 1
    assert (tmp_path / "x.pfz.work" / "samples-of-mine.png").exists()


# --- several processes ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_what_one_does(pictures, tmp_path):
    """Batches of 5, so that the processes have different shares.

    All with one thread: where a gradient is nearly 0, another order of sums turns the sign of Adam's first steps.
    """
    common = ["pretrain", pictures, *TINY, "--batch-size", 5, "--lr", "2e-5", "--gradient-accumulation", 2]
    common += ["--dtype", "float32"]  # bfloat16 is too coarse to compare, and `auto` may mean it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ok(*common, "--steps", 3, "-o", tmp_path / "one.pfz")
    finally:
        torch.set_num_threads(threads)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    arguments = [*common, "--steps", 3, "-o", tmp_path / "two.pfz", "--json"]
    command = [*launcher, "-m", "profusion_cli", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    # one object: only the main process prints, and the transport of early releases of torch, in [brackets]
    (line,) = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]
    assert json.loads(line)["num_processes"] == 2
    assert done.stderr.count("random weights") == 1
    one, two = weights(tmp_path / "one.pfz"), weights(tmp_path / "two.pfz")
    assert differ(one, two) < 1e-5
    curves = [log_of(tmp_path / f"{name}.pfz.work") for name in ("one", "two")]
    for row, other in zip(*curves, strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5)
        assert float(row["grad_norm"]) == pytest.approx(float(other["grad_norm"]), rel=1e-4)


def test_an_error_of_all_processes_is_told_once(monkeypatch, tmp_path):
    """The launcher ends the others while they wait; an error of their own they tell after the wait."""
    waits = []
    monkeypatch.setattr(app.time, "sleep", waits.append)
    for rank, expected in (("0", []), ("1", [app.OTHERS_WAIT])):
        monkeypatch.setenv("LOCAL_RANK", rank)
        result = run("pretrain", tmp_path / "none", "-o", tmp_path / "x.pfz")
        assert (result.exit_code, waits) == (5, expected)
        assert "no file or folder" in result.stderr


def test_the_end_of_another_process_is_no_bug():
    broken = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer\nmore")
    with pytest.raises(DeviceError, match="Another process"), lost_processes(2):
        raise broken
    with pytest.raises(RuntimeError), lost_processes(1):
        raise broken
    with pytest.raises(RuntimeError, match="shape"), lost_processes(2):
        raise RuntimeError("shape")


def test_the_end_of_another_process_between_steps_keeps_what_is_done(pictures, tmp_path, monkeypatch):
    asked = []

    def lost(accelerator, interrupts):
        asked.append(1)
        if len(asked) == 2:
            raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")
        return 0

    monkeypatch.setattr(loop, "asked_to_stop", lost)
    monkeypatch.setattr(loop, "lost_processes", lambda _: lost_processes(2))
    result = run("pretrain", pictures, *TINY, "--steps", 3, "-o", tmp_path / "x.pfz")
    assert result.exit_code == DeviceError.exit_code
    assert "Another process" in result.stderr
    assert newest_checkpoint(tmp_path / "x.pfz.work").step == 2
