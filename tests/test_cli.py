"""The command line: help, pipes, bad input, and that nothing is lost or half written."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import typer
import yaml
from PIL import Image

from profusion_cli import __version__
from profusion_cli.app import app
from profusion_cli.bundle import read_bundle
from profusion_cli.images import encode_png
from profusion_cli.jobs.summaries import summary
from profusion_cli.mappings import merge
from tests.conftest import SHARED, draw_photo, ok, run, write_bundle

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    *("pretrain", "augment", "finetune", "sample", "interpolate", "import"),
    *("compress", "export", "inspect", "presets", "evaluate", "bench", "doctor"),
)
needs_faces = pytest.mark.skipif(not (SHARED / "faces").is_dir(), reason="the photographs are not here")


def flat(result) -> str:
    return " ".join(result.stderr.split())


# --- help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], *[[command] for command in COMMANDS]])
def test_help_needs_no_torch(arguments):
    """In a process of its own: no module of the heavy libraries is imported."""
    script = (
        "import sys; from profusion_cli.app import app\n"
        "try: app(sys.argv[1:] + ['--help'], standalone_mode=False)\n"
        "finally:\n"
        "    heavy = ('torch', 'diffusers', 'transformers', 'numpy', 'PIL')\n"
        "    print('HEAVY', [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    root = typer.main.get_command(app)
    about = (root.commands[arguments[0]] if arguments else root).help
    assert " ".join(about.split()[:4]) in " ".join(done.stdout.split())
    assert "HEAVY []" in done.stdout


def test_every_option_is_described():
    commands = typer.main.get_command(app).commands
    assert set(commands) == set(COMMANDS)
    for name, command in commands.items():
        assert command.params, name
        for parameter in command.params:
            assert len((parameter.help or "").split()) > 1, (name, parameter.name)


def test_python_without_docstrings_is_told_of():
    environment = {**os.environ, "PYTHONOPTIMIZE": "2"}
    command = [sys.executable, "-m", "profusion_cli", "presets"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 8 and "PYTHONOPTIMIZE" in done.stderr and not done.stdout


def test_version():
    assert ok("--version").stdout == f"profusion {__version__}\n"


def test_completion_is_installed_and_completes(tmp_path):
    """In a process of its own, which loads none of the heavy libraries."""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"

    def profusion(*arguments: str, **variables: str) -> str:
        script = "import sys; from profusion_cli.app import run\ntry: run()\nfinally: assert 'torch' not in sys.modules"
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
        return done.stdout

    profusion("--install-completion", "bash")
    assert "_PROFUSION_COMPLETE" in "".join(path.read_text() for path in tmp_path.rglob("*profusion*"))
    told = profusion(_PROFUSION_COMPLETE="complete_bash", COMP_WORDS="profusion fine", COMP_CWORD="1")
    assert told.split() == ["finetune"]
    told = profusion(_PROFUSION_COMPLETE="complete_bash", COMP_WORDS="profusion sample --preset face", COMP_CWORD="3")
    assert told.split() == ["faceworld"]


# --- bad input -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_models(monkeypatch):
    """Loading any part of a base model fails the test: the mistake must be found before."""
    from profusion_cli.runtime.backbone import BaseModel

    monkeypatch.setattr(BaseModel, "_load", lambda *a: pytest.fail("a model was loaded"))
    monkeypatch.setattr(BaseModel, "__enter__", lambda *a: pytest.fail("the base model was opened"))


BAD_FINETUNE = {  # arguments, exit code, and our words: none where Typer speaks
    "missing photo": (["nowhere.png"], 5, "nowhere.png"),
    "folder as photo": (["folder"], 5, "is a folder"),
    "not an image": (["text.png"], 5, "text.png"),
    "empty file": (["empty.png"], 5, "is empty"),
    "truncated image": (["cut.png"], 5, "cut.png"),
    "bundle as photo": (["me.pfz"], 4, "images are needed"),
    "two standard inputs": (["-", "-"], 2, "twice"),
    "weights as photo": (["lora.safetensors"], 5, "holds weights (safetensors)"),
    "useless option": (["face.png", "--no-augment", "--drop", "3"], 2, "--drop has no effect"),
    "unknown preset": (["face.png", "--preset", "tiny-randm"], 3, "tiny-random"),
    "unknown key": (["face.png", "--set", "finetune.step=3"], 3, "finetune.steps"),
    "unknown choice": (["face.png", "--train", "atention"], 3, "attention"),
    "batch out of range": (["face.png", "--batch-size", "0"], 3, "finetune.batch_size=0"),
    "no such device": (["face.png", "--device", "gpu"], 6, "gpu"),
    "option of the wrong type": (["face.png", "--steps", "many"], 2, ""),
    "unknown option": (["face.png", "--stpes", "3"], 2, ""),
}


@pytest.mark.parametrize("case", BAD_FINETUNE)
def test_finetune_bad_input(case, photo, subject, tmp_path, monkeypatch, no_models):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "face.png").write_bytes(photo.read_bytes())
    (tmp_path / "me.pfz").write_bytes(subject.read_bytes())
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:300])
    (tmp_path / "folder").mkdir()
    (tmp_path / "lora.safetensors").write_bytes(safetensors.numpy.save({"a": np.zeros(3, "float32")}))
    before = sorted(tmp_path.iterdir())
    arguments, code, message = BAD_FINETUNE[case]
    preset = [] if "--preset" in arguments else ["--preset", "tiny-random"]
    dry = run("finetune", *arguments, *preset, "-o", "out.pfz", "--dry-run")
    assert dry.exit_code == code, dry.stderr
    result = run("finetune", *arguments, *preset, "-o", "out.pfz")
    assert result.exit_code == code, result.stderr
    assert message in flat(result)
    assert sorted(tmp_path.iterdir()) == before


EXPANDED = "Did the shell expand S*? Put the prompt in quotes."
BAD_SAMPLE = {
    "no bundle": (["S* at sea"], 2, "not a bundle"),
    "no prompt": (["me.pfz"], 2, "no prompt"),
    "missing bundle": (["nowhere.pfz", "S*"], 5, "nowhere.pfz"),
    "photo as bundle": (["face.png", "S*"], 4, "face.png"),
    "truncated": (["cut.pfz", "S*"], 4, "truncated"),
    "tampered": (["bent.pfz", "S*"], 4, "is damaged"),
    "newer schema": (["newer.pfz", "S*"], 4, "Upgrade"),
    "wrong kind": (["promptnet.pfz", "S*"], 4, "holds a promptnet"),
    "no placeholder": (["me.pfz", "a person at sea"], 5, "no placeholder"),
    "second of one": (["me.pfz", "S2* at sea"], 5, "only one subject"),
    "missing prompts file": (["me.pfz", "--prompts", "nowhere.txt"], 5, "nowhere.txt"),
    "several pictures in one file": (["me.pfz", "S*", "-n", "2", "-o", "x.png"], 2, "2 pictures"),
    "several pictures on stdout": (["me.pfz", "S*", "S* at sea", "-o", "-"], 2, "2 pictures"),
    "json on stdout": (["me.pfz", "S*", "-o", "-", "--json"], 2, "--json"),
    "guidance no number": (["me.pfz", "S*", "--subject-guidance", "a,b"], 2, "a,b"),
    "useless without fusion": (["me.pfz", "S*", "--fusion-steps", "0", "--gamma", "0.5"], 2, "no effect"),
    "not a PNG": (["me.pfz", "S*", "-o", "x.jpg"], 2, "a .png name, or a folder"),
    "expanded by the shell": (["me.pfz", "Sketch.txt", "on", "a", "beach"], 2, EXPANDED),
    "expanded to a folder": (["me.pfz", "Studies", "on", "a", "beach"], 2, EXPANDED),
    "expanded behind words": (["me.pfz", "a", "man", "like", "Sketch.txt"], 2, EXPANDED),
    "expanded alone": (["me.pfz", "Sketch.txt"], 2, EXPANDED),
    "cut by the shell": (["me.pfz", "S*", "on", "a", "beach"], 5, EXPANDED),
    "cut, of another placeholder": (["me.pfz", "--placeholder", "sks", "sks", "on"], 5, "sks. Put the prompt in"),
    "forgotten placeholder": (["me.pfz", "beach"], 5, "Write it where the subject belongs"),
    "photo to draw": (["face.png", "S* on a beach"], 4, "This is a photo: run `profusion finetune` on it first."),
    "drawn picture to draw": (["drawn.png", "S*"], 4, "Give the bundle that it was drawn from: me.pfz."),
    "weights to draw": (["lora.safetensors", "S*"], 4, "is a safetensors file"),
    "folder to draw": (["Studies", "S* on a beach"], 2, "is a folder"),
    "name of another kind": (["me.pfz", "S*", "-o", "x.safetensors"], 2, "would be a .safetensors file"),
    "numbers that fit no subject": (["me.pfz", "S*", "--subject-guidance", "5,2"], 3, "2 numbers"),
    "sheet not a PNG": (["me.pfz", "S*", "--sheet", "x.jpg"], 2, "PNG"),
    "sheet in a picture's place": (["me.pfz", "S*", "-o", "p", "--sheet", "./p/01-s-0.png"], 2, "of its own"),
    "sheet in the folder's place": (["me.pfz", "S*", "-o", "p", "--sheet", "p.png/../p"], 2, "of its own"),
    "endless weight": (["me.pfz", "S*", "--weights", "inf"], 3, "out of range"),
    "endless number": (["me.pfz", f"S{'1' * 5000}*"], 5, "no placeholder"),
    "empty name": (["", "S*"], 2, "not a bundle"),
    "useless option": (["me.pfz", "S*", "--sampler", "cfg", "--gamma", "0.5"], 2, "--gamma has no effect"),
    "gamma out of range": (["me.pfz", "S*", "--gamma", "2"], 3, "sample.gamma=2.0"),
    "no CUDA": (["me.pfz", "S*", "--device", "cuda:99"], 6, "cuda:99"),
    "output folder is a file": (["me.pfz", "S*", "-o", "face.png/x"], 9, "face.png"),
    "output exists": (["me.pfz", "S*", "-o", "face.png"], 9, "--force"),
    "sheet in the picture's place": (["me.pfz", "S*", "-o", "x.png", "--sheet", "x.png"], 2, "of its own"),
    "sheet exists": (["me.pfz", "S*", "--sheet", "face.png"], 9, "--force"),
}


NEEDS_TORCH = ("no CUDA",)
"""What a dry run, which loads no library for models, does not find."""


def drawn_picture() -> bytes:
    """A picture with the record of one that was drawn from a bundle."""
    return encode_png(Image.new("RGB", (64, 64)), "", {"prompt": "S*", "subjects": [{"name": "me.pfz"}]})


def with_manifest(data: bytes, old: bytes, new: bytes) -> bytes:
    """A bundle whose manifest was edited, and nothing else."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == "manifest.yaml":
                assert old in content
                content = content.replace(old, new)
            archive.writestr(entry, content)
    return target.getvalue()


@pytest.mark.parametrize("case", BAD_SAMPLE)
def test_sample_bad_input(case, photo, subject, tmp_path, monkeypatch, no_models):
    monkeypatch.chdir(tmp_path)
    data = subject.read_bytes()
    (tmp_path / "face.png").write_bytes(photo.read_bytes())
    (tmp_path / "me.pfz").write_bytes(data)
    (tmp_path / "cut.pfz").write_bytes(data[: len(data) // 2])
    middle = data.index(b"promptnet.safetensors", 1000) + 200_000
    (tmp_path / "bent.pfz").write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    (tmp_path / "newer.pfz").write_bytes(with_manifest(data, b"schema_version: 1", b"schema_version: 9"))
    bundle = read_bundle(data, "me.pfz")
    files = {"promptnet.safetensors": bundle.read("promptnet.safetensors")}
    write_bundle(tmp_path / "promptnet.pfz", {**bundle.manifest, "kind": "promptnet"}, files)
    (tmp_path / "Sketch.txt").write_text("notes")
    (tmp_path / "Studies").mkdir()
    (tmp_path / "lora.safetensors").write_bytes(safetensors.numpy.save({"a": np.zeros(3, "float32")}))
    (tmp_path / "drawn.png").write_bytes(drawn_picture())
    before = sorted(tmp_path.iterdir())
    arguments, code, message = BAD_SAMPLE[case]
    dry = run("sample", *arguments, "--dry-run")
    assert dry.exit_code == (0 if case in NEEDS_TORCH else code), dry.stderr
    assert dry.exit_code == 0 or not dry.stdout
    result = run("sample", *arguments)
    assert result.exit_code == code, result.stderr
    assert message in flat(result)
    assert sorted(tmp_path.iterdir()) == before
    if code != 2:  # one line says what is wrong, and one what to do
        first, second = [line for line in result.stderr.splitlines() if line and not line.startswith("Warning")]
        assert re.fullmatch(r"Error: .*[^.]\.", first)
        assert second.endswith((".", "style'"))


def crafted(subject: Path, target: Path, changes: dict | None = None, **tensors) -> Path:
    """A subject bundle that is whole, and wrong inside."""
    bundle = read_bundle(subject.read_bytes(), subject.name)
    files = {name: bytes(bundle.read(name)) for name in bundle.files}
    if tensors:
        views = safetensors.numpy.load(files["views.safetensors"]) | tensors
        kept = {name: value for name, value in views.items() if value is not None}
        files["views.safetensors"] = safetensors.numpy.save(kept)
    write_bundle(target, merge(bundle.manifest, changes or {}), files, bundle.preview)
    return target


@pytest.mark.parametrize(
    "change",
    [
        {"latents_mean": None},
        {"latents_mean": np.zeros((1, 3, 16, 16), "float32"), "latents_std": np.zeros((1, 3, 16, 16), "float32")},
        {"latents_mean": np.zeros((1, 4, 4, 4), "float32"), "latents_std": np.zeros((1, 4, 4, 4), "float32")},
        {"latents_std": np.zeros((1, 4, 8, 8), "float32")},
        {"image_tokens": np.zeros((1, 257, 5), "float32")},
        {"image_tokens": np.zeros((2, 257, 32), "float32")},
        {"changes": {"promptnet": {"region_kernel_size": -1}}},
        {"changes": {"promptnet": {"embedding_dim": 16}}},
        {"changes": {"promptnet": {"unet": {"norm_num_groups": 0}}}},
        {"changes": {"promptnet": {"unet": {"in_channels": "many"}}}},
        {"changes": {"promptnet": {"depth": 3}}},
        {"changes": {"config": {"sample": {"stpes": 3}}}},
        {"changes": {"base": {"fingerprint": {"unet": "0" * 16}}}},
    ],
)
def test_crafted_bundles_end_in_words(change, subject, tmp_path):
    result = run("sample", crafted(subject, tmp_path / "c.pfz", **change), "S*", "--steps", 1, "-o", tmp_path / "x.png")
    assert result.exit_code == 4, (result.stderr, result.exception)
    assert "c.pfz" in result.stderr or "PromptNet" in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_a_bundle_that_does_not_name_its_base_is_refused(subject, tmp_path):
    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    manifest = {**bundle.manifest, "base": {"id": "x", "revision": None, "fingerprint": {}}}
    write_bundle(tmp_path / "c.pfz", manifest, {name: bundle.read(name) for name in bundle.files})
    result = run("sample", tmp_path / "c.pfz", "S*", "--steps", 1, "-o", tmp_path / "x.png")
    assert result.exit_code == 4
    assert "does not say which unet" in result.stderr


def test_a_preview_that_is_no_picture_is_found_before_drawing(subject, tmp_path, no_models):
    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    files = {name: bundle.read(name) for name in bundle.files}
    write_bundle(tmp_path / "c.pfz", bundle.manifest, files, b"\x89PNG\r\n\x1a\n and then nothing")
    result = run("sample", tmp_path / "c.pfz", "S*", "--sheet", tmp_path / "s.png", "-o", tmp_path / "x.png")
    assert result.exit_code == 4
    assert "preview" in result.stderr


def test_the_preview_is_hashed(subject, tmp_path):
    data = subject.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        preview = archive.read("preview.png")
    other = draw_photo(tmp_path / "other.png", "red").read_bytes()
    assert preview != other
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archive:
        for entry in source.infolist():
            archive.writestr(entry, other if entry.filename == "preview.png" else source.read(entry))
    (tmp_path / "c.pfz").write_bytes(target.getvalue())
    result = run("inspect", tmp_path / "c.pfz")
    assert result.exit_code == 4
    assert "preview.png" in result.stderr


def test_existing_output_is_kept_unless_forced(photo, subject, tmp_path):
    target = tmp_path / "me.pfz"
    target.write_text("precious")
    common = ("finetune", photo, "--no-augment", "--preset", "tiny-random", "--steps", 0, "-o", target)
    result = run(*common)
    assert result.exit_code == 9
    assert "--force" in result.stderr
    assert target.read_text() == "precious"
    ok(*common, "--force")
    assert read_bundle(target.read_bytes(), "me.pfz").kind == "subject"
    picture = tmp_path / "01-s-0.png"
    picture.write_text("precious")
    result = run("sample", subject, "S*", "--steps", 1, "-o", picture)
    assert result.exit_code == 9
    assert picture.read_text() == "precious"


def test_a_second_run_into_a_folder_counts_on(subject, tmp_path, monkeypatch):
    """All pictures of a run get the same number, the least that is free for each of them."""
    monkeypatch.chdir(tmp_path)
    first = ("01-s-at-sea-0.png", "01-s-at-sea-1.png")
    assert ok("sample", subject, "S* at sea", "-n", 2, "--steps", 1).stdout.split() == [f"pictures/{n}" for n in first]
    before = {name: (tmp_path / "pictures" / name).read_bytes() for name in first}
    drawn = np.asarray(Image.open(tmp_path / "pictures" / first[0])).astype(int)
    third = ("01-s-at-sea-0-3.png", "02-s-0-3.png")
    (tmp_path / "pictures" / "02-s-0-2.png").mkdir()
    result = ok("sample", subject, "S* at sea", "S*", "--steps", 1)
    assert result.stdout.split() == [f"pictures/{name}" for name in third]
    again = np.asarray(Image.open(tmp_path / "pictures" / third[0])).astype(int)
    assert abs(again - drawn).max() <= 1, "the same seed draws the same picture"
    assert {name: (tmp_path / "pictures" / name).read_bytes() for name in first} == before
    (tmp_path / "pictures" / first[0]).write_text("old")
    assert ok("sample", subject, "S* at sea", "--steps", 1, "--force").stdout == f"pictures/{first[0]}\n"
    assert (tmp_path / "pictures" / first[0]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "face.png", "-o", "y.safetensors"],
        ["augment", "face.png", "-o", "y.png"],
        ["pretrain", "face.png", "-o", "y.pt"],
        ["import", "folder", "-o", "y.bin"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_bundle_is_not_named_as_another_kind_of_file(arguments, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "face.png").write_bytes(photo.read_bytes())
    for more in [["--dry-run"], []] if arguments[0] != "import" else [[]]:
        result = run(*arguments, *more)
        assert result.exit_code == 2 and "Use a .pfz name." in result.stderr, result.stderr
        assert not result.stdout
    (tmp_path / "me.pfz").touch()
    if arguments[0] != "import":
        preset = ("--preset", "tiny-random")
        assert run(*arguments[:2], "-o", "me.pfz", *preset, "--dry-run").exit_code == 9
        assert run(arguments[0], "nowhere.png", "-o", "you.pfz", *preset, "--dry-run").exit_code in (2, 5)
        assert "preset: tiny-random" in ok(*arguments[:2], "-o", "you.pfz", *preset, "--dry-run").stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "me.pfz"]


def test_a_drawn_picture_as_a_photo_is_told(tmp_path):
    (tmp_path / "drawn.png").write_bytes(drawn_picture())
    arguments = ("finetune", tmp_path / "drawn.png", "--preset", "tiny-random", "-o", tmp_path / "x.pfz", "--dry-run")
    assert "was drawn by profusion from me.pfz" in flat(ok(*arguments))


def test_a_seed_drawn_at_random_is_told_and_recorded(subject, photo, tmp_path):
    result = ok("sample", subject, "S*", "--seed", -1, "--steps", 1, "-o", tmp_path / "a.png", "--json")
    seed = json.loads(result.stdout)["pictures"][0]["seed"]
    assert f"--seed {seed} " in flat(result)
    ok("sample", subject, "S*", "--seed", seed, "--steps", 1, "-o", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    tiny = ("--preset", "tiny-random", "--seed", -1, "-o", tmp_path / "x.pfz", "--dry-run")
    drawn = set()
    for command in ("finetune", "augment", "pretrain"):
        result = ok(command, photo, *tiny)
        drawn.add(yaml.safe_load(result.stdout)["seed"])
        assert f"--seed {yaml.safe_load(result.stdout)['seed']} " in flat(result)
    assert len(drawn) == 3
    assert run("sample", subject, "S*", "--seed", -2).exit_code == 3
    assert run("pretrain", photo, *tiny, "--resume").exit_code == 2


def test_several_processes_draw_no_seed_of_their_own(photo, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ("pretrain", photo, "--preset", "tiny-random", "--seed", -1, "-o", tmp_path / "x.pfz", "--dry-run")
    assert run(*arguments).exit_code == 2


def test_a_full_disk_leaves_nothing_behind(photo, subject, tmp_path, monkeypatch):
    original = os.fsync

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = run("finetune", photo, "--no-augment", "--preset", "tiny-random", "--steps", 0, "-o", tmp_path / "me.pfz")
    assert result.exit_code == 9
    assert "no space left" in flat(result)
    result = run("sample", subject, "S*", "--steps", 1, "-o", tmp_path / "x.png")
    assert result.exit_code == 9
    monkeypatch.setattr(os, "fsync", original)
    assert not list(tmp_path.iterdir())


def test_out_of_memory_says_what_to_lower(subject, tmp_path, monkeypatch):
    import torch

    from profusion_cli.runtime.denoiser import PromptDenoiser

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(PromptDenoiser, "__call__", exhausted)
    result = run("sample", subject, "S*", "--steps", 1, "-o", tmp_path / "x.png")
    assert result.exit_code == 6
    assert "--batch-size" in result.stderr
    assert "9 GiB" in result.stderr


def test_a_bug_is_a_bug(subject, tmp_path, monkeypatch):
    """Exit code 1 with the traceback; never swallowed."""
    from profusion_cli.runtime.denoiser import PromptDenoiser

    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(PromptDenoiser, "__call__", broken)
    result = run("sample", subject, "S*", "--steps", 1, "-o", tmp_path / "x.png")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_too_long_a_prompt_as_the_first_argument_is_no_crash(tmp_path):
    result = run("sample", "S* " * 3000, "-o", tmp_path / "x.png")
    assert result.exit_code == 2


# --- inspect -------------------------------------------------------------------------------------------------


def test_inspect_traces_a_picture_to_the_photo(subject, photo, tmp_path):
    picture = tmp_path / "x.png"
    ok("sample", subject, "S* at sea", "--steps", 1, "-o", picture)
    entries = list(yaml.safe_load_all(ok("inspect", picture, subject, photo, "--full").stdout))
    assert [entry["is"] for entry in entries] == ["picture made by profusion", "subject bundle", "photo"]
    assert [origin["is_the_file"] for origin in entries[0]["made_from"]] == [str(subject), str(photo)]
    assert [origin["is_the_file"] for origin in entries[1]["made_from"]] == [str(photo)]
    assert entries[0]["record"]["prompt"] == "S* at sea"
    alone = yaml.safe_load(ok("inspect", picture, "--full").stdout)
    assert alone["made_from"][1]["what"] == "photo face.png"
    assert "is_the_file" not in alone["made_from"][1]
    listed = json.loads(ok("inspect", subject, "--json").stdout)["files"]
    assert listed[0]["manifest"] == entries[1]["manifest"]


def test_inspect_says_at_first_what_matters(subject, photo, tmp_path):
    """Some fifteen lines of each kind, in YAML: whose, from what, by what means, how large."""
    tiny = ("--preset", "tiny-random")
    ok("augment", photo, *tiny, "--views", 2, "-o", tmp_path / "views.pfz", "-q")
    ok("sample", subject, "S* at sea", "--steps", 1, "-o", tmp_path / "x.png")
    ok("pretrain", photo, *tiny, "--steps", 1, "--batch-size", 1, "-o", tmp_path / "promptnet.pfz", "-q")
    names = ("views.pfz", "x.png", "promptnet.pfz", "promptnet.pfz.work")
    files = [subject, *(tmp_path / name for name in names), photo]
    told = ok("inspect", *files).stdout.split("---\n")
    assert all(len(lines.splitlines()) <= 16 for lines in told)
    me, views, picture, promptnet, work, face = map(yaml.safe_load, told)
    assert me["of"] == "a person" and "tiny-random" in me["base"] and me["method"].startswith("profusion")
    assert me["training"].startswith("2 steps of 2 pictures") and "promptnet" in me["parts"]
    assert "the file" in me["made from"][0] and str(photo) in me["made from"][0]
    assert views["views"] == "2 made from the photo, backgrounds inpainted"
    assert picture["prompt"] == "S* at sea" and picture["subjects"] == "me.pfz" and len(picture["made from"]) == 2
    assert promptnet["training"] == "1 steps, on 1 pictures"
    assert work["is"] == "work folder of a pre-training" and work["done"].startswith("1 steps")
    assert face["pixels"] == "160x140"
    assert run("inspect", subject, "--full", "--json").exit_code == 2
    assert run("inspect", tmp_path).exit_code == 5
    listed = json.loads(ok("inspect", *files, "--json").stdout)["files"]
    assert "tensors" in listed[0]["manifest"]["files"]["promptnet.safetensors"] and listed[4]["checkpoints"]


def test_inspect_of_a_run_whose_files_are_damaged(tmp_path):
    work, study = tmp_path / "work", tmp_path / "study"
    work.mkdir()
    study.mkdir()
    (work / "log.csv").write_bytes(b"step,loss\n\xff,1\n")
    (study / "study.yaml").write_bytes(b"\xff")
    for content in (b"[1]", b"{", b"[" * 100_000, b"\xff"):
        (study / "results.json").write_bytes(content)
        told = list(yaml.safe_load_all(ok("inspect", work, study).stdout))
        assert [entry["is"] for entry in told] == ["work folder of a pre-training", "run of a study"]


def test_inspect_is_short_whatever_a_manifest_says(subject, tmp_path):
    """Of what is not as profusion writes it, nothing is told; what is told stays on its line."""
    odd = {"config": {"finetune": [1], "sample": "x\n" * 500, "base": None}, "pictures": {"a": 1}, "s_star": 3}
    odd |= {"augmentation": {"views": 3}, "promptnet_source": {"weights": "w\n\n" * 500}, "loss": {"first": [2]}}
    deep: list = []
    for _ in range(50):
        deep = [deep] * 5
    assert summary({"file": "x", "is": "y", "record": {"prompt": deep, "seed": deep}}) == {"file": "x", "is": "y"}
    whole = [{"kind": "photo", "name": f"{number}.png", "sha256": "0" * 64} for number in range(50)]
    path = crafted(subject, tmp_path / "odd.pfz", {**odd, "inputs": whole})
    told = ok("inspect", path).stdout
    assert len(told.splitlines()) <= 20 and max(map(len, told.splitlines())) < 200
    assert yaml.safe_load(told)["made from"][-1] == "and 45 more"


def test_inspect_bad_input(subject, photo, tmp_path):
    other = draw_photo(tmp_path / "other.png", "red")
    entry = next(iter(yaml.safe_load_all(ok("inspect", subject, other, "--full").stdout)))
    assert "is_the_file" not in entry["made_from"][0]
    (tmp_path / "text").write_text("hello")
    assert run("inspect", tmp_path / "text").exit_code == 5
    assert run("inspect", tmp_path / "nowhere").exit_code == 5
    (tmp_path / "cut.pfz").write_bytes(subject.read_bytes()[:5000])
    assert run("inspect", tmp_path / "cut.pfz").exit_code == 4


# --- pipes, in a real shell ----------------------------------------------------------------------------------


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "P": f"{sys.executable} -m profusion_cli", **variables}
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, check=False)


@pytest.mark.slow
def test_the_pipe(photo, tmp_path):
    done = shell(
        "set -o pipefail; cat $PHOTO | $P finetune - --preset tiny-random --steps 1 -o - "
        '| $P sample - "S* in anime style" --steps 1 -o - > out.png',
        tmp_path,
        PHOTO=str(photo),
    )
    assert done.returncode == 0, done.stderr.decode()
    ours = [line for line in done.stderr.decode().splitlines() if line.startswith("Warning:")]
    assert len(ours) == 3, done.stderr.decode()  # random weights, twice, and a schedule of one step
    assert b"Traceback" not in done.stderr
    entry = yaml.safe_load(ok("inspect", tmp_path / "out.png", "--full").stdout)
    assert entry["record"]["subjects"][0]["inputs"][0]["name"] == "standard input"


def test_the_whole_chain(photo, tmp_path):
    """Photo to views to subject to picture, through standard input and output: the picture names views and photo."""
    preset = ("--preset", "tiny-random")
    views = ok("augment", "-", *preset, "--views", 2, "-o", "-", "-q", input=photo.read_bytes()).stdout_bytes
    (tmp_path / "views.pfz").write_bytes(views)
    bundle = ok("finetune", "-", "--steps", 1, "-o", "-", "-q", input=views).stdout_bytes
    picture = ok("sample", "-", "S* in anime style", "--steps", 1, "-o", "-", "-q", input=bundle).stdout_bytes
    (tmp_path / "out.png").write_bytes(picture)
    told = ok("inspect", tmp_path / "out.png", tmp_path / "views.pfz", photo, "--full").stdout
    entry = next(iter(yaml.safe_load_all(told)))
    named = [origin.get("is_the_file") for origin in entry["made_from"]]
    assert named == [None, str(photo), str(tmp_path / "views.pfz")]


def test_a_failing_pipe_says_why_once(tmp_path):
    done = shell('$P finetune nowhere.png -o - | $P sample - "S*" -o - > out.png', tmp_path)
    assert b"There is no file 'nowhere.png'" in done.stderr
    assert b"Standard input is empty" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_stops_is_no_crash(subject, tmp_path):
    done = shell(f"$P inspect {subject} | head -n 1; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert b"Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == b"0"


@pytest.mark.slow
def test_results_that_nobody_reads_do_not_stop_the_work(subject, tmp_path):
    done = shell(
        f"$P sample {subject} 'S*' -n 2 --batch-size 1 --steps 1 -o out --sheet sheet.png | head -c 0; "
        "echo ${PIPESTATUS[0]}",
        tmp_path,
    )
    assert b"Traceback" not in done.stderr
    assert done.stdout.split()[-1] == b"0"
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert (tmp_path / "sheet.png").exists()


def test_closed_and_full_standard_streams(subject, tmp_path):
    for script, code in (
        ("$P finetune - -o x.pfz <&-", 5),
        ("$P sample - 'S*' -o x.png <&-", 5),
        ("$P presets >&-", 9),
        ("$P presets >/dev/full", 9),
        (f"$P inspect {subject} >/dev/full", 9),
        (f"$P sample {subject} 'S*' --dry-run >/dev/full", 9),
    ):
        done = shell(script, tmp_path)
        assert done.returncode == code, (script, done.stderr.decode())
        assert b"Traceback" not in done.stderr, script
    assert not list(tmp_path.iterdir())


TELLING = """
import pathlib
from profusion_cli.__main__ import main
from profusion_cli.runtime import training

loss = training.diffusion_loss
def begun(prediction, target):
    if not prediction.is_meta:  # else memory is counted
        pathlib.Path("tmp/begun").touch()
    return loss(prediction, target)
training.diffusion_loss = begun
main()
"""
"""The program, which leaves a file where its training begins."""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_end_by_signal_leaves_no_files(photo, tmp_path, number, code):
    """A real process, while it fine-tunes: its exit code, no traceback, and nothing on the disk."""
    (tmp_path / "tmp").mkdir()
    arguments = ["finetune", photo, "--no-augment", "--preset", "tiny-random", "--steps", "100000", "-o", "me.pfz"]
    process = subprocess.Popen(
        [sys.executable, "-c", TELLING, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.PIPE,
        # a suite that a shell started in the background ignores it, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for((tmp_path / "tmp" / "begun").exists)
        assert not list(tmp_path.glob("tmp/profusion-*")), "a model of random weights is in memory"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, stderr.decode()
    assert (b"Interrupted. " in stderr) == (b"of 100000 steps" in stderr) == (number == signal.SIGINT)
    assert b"Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert not list(tmp_path.rglob("*profusion*"))
    # torch leaves folders there, in some versions with a script
    left = {path.name for path in tmp_path.rglob("*") if not path.is_dir()}
    assert left <= {"begun", "_remote_module_non_scriptable.py"}


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Until it is true; the test fails where it never is."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@needs_faces
def test_photographs(tmp_path):
    """Two real photographs, alone and together."""
    faces = sorted((SHARED / "faces").glob("*.jpg"))[:2]
    bundles = []
    for face in faces:
        bundles.append(tmp_path / f"{face.stem}.pfz")
        ok("finetune", face, "--no-augment", "--preset", "tiny-random", "--steps", 1, "-o", bundles[-1])
    ok("sample", *bundles, "S1* and S2* at sea", "--steps", 1, "-o", tmp_path, "--sheet", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()
