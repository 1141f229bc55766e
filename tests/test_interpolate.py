"""`interpolate`: its ends, its way, and its three kinds of output."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from profusion_cli.bundle import read_bundle
from profusion_cli.console import Output
from profusion_cli.errors import OutputError
from profusion_cli.images import encode_animation, enlarged, read_record, strip
from profusion_cli.jobs.pictures import Picture
from profusion_cli.runtime.sampling import frame_weights
from tests.conftest import SHARED, ok, run, write_bundle

PROMPT = "S* as an astronaut"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("command", ["sample", "interpolate"])
def test_the_progress_bar_is_gone_before_an_error_is_told(command, subject, other_subject, tmp_path, monkeypatch):
    seen = []

    @contextmanager
    def progress(self, title, total, counted=True):
        seen.append("bar")
        try:
            yield lambda done, remark="": None
        finally:
            seen.append("no bar")

    def save(self, target, force=False, credentials=None):
        raise OutputError("The disk is full.", "Free some space.")

    monkeypatch.setattr(Output, "progress", progress)
    monkeypatch.setattr(Picture, "save", save)
    monkeypatch.setattr("profusion_cli.app.print_error", lambda error: seen.append(error.message))
    subjects = [subject, other_subject][: 2 if command == "interpolate" else 1]
    result = run(command, *subjects, PROMPT, "--steps", 1, "-o", tmp_path / "pictures")
    assert result.exit_code == OutputError.exit_code
    assert seen == ["bar", "no bar", "The disk is full."]


def test_warnings_are_of_the_drawing_and_come_after_all_checks(subject, tmp_path):
    (tmp_path / "there.png").touch()
    result = run("sample", subject, PROMPT, "-o", tmp_path / "there.png")
    assert result.exit_code == OutputError.exit_code
    assert "Warning" not in result.stderr


@pytest.fixture(scope="module")
def frames(subject, other_subject, work) -> list[np.ndarray]:
    folder = work / "frames"
    ok("interpolate", subject, other_subject, PROMPT, "--frames", 3, "--steps", 3, "--seed", 4, "-o", folder)
    return [pixels(folder / f"frame-{frame:03d}.png") for frame in range(3)]


def test_the_weights_shift_from_subject_to_subject():
    assert frame_weights(3, 2) == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    assert frame_weights(5, 3)[1::2] == [(0.5, 0.5, 0.0), (0.0, 0.5, 0.5)]
    for frames, subjects in ((2, 2), (7, 3), (4, 4)):
        weights = frame_weights(frames, subjects)
        assert weights[0][0] == weights[-1][-1] == 1.0
        assert [sum(row) for row in weights] == pytest.approx([1.0] * frames)


def test_the_ends_are_what_sample_draws_of_one_subject(frames, subject, other_subject, tmp_path):
    """Also with subjects of different class words: each end's text twin names its own subject alone."""
    for frame, bundle in ((frames[0], subject), (frames[-1], other_subject)):
        ok("sample", bundle, PROMPT, "--steps", 3, "--seed", 4, "-o", tmp_path / "x.png", "--force")
        assert abs(frame - pixels(tmp_path / "x.png")).max() == 0


def test_the_middle_is_both(frames, subject, other_subject, tmp_path):
    ok("sample", subject, other_subject, PROMPT, "--steps", 3, "--seed", 4, "-o", tmp_path / "x.png")
    assert abs(frames[1] - pixels(tmp_path / "x.png")).max() <= 1
    assert abs(frames[1] - frames[0]).max() > 1
    assert abs(frames[1] - frames[2]).max() > 1


def test_a_strip_has_the_references_at_its_ends(frames, subject, other_subject, tmp_path):
    target = tmp_path / "strip.png"
    common = (subject, other_subject, PROMPT, "--frames", 3, "--steps", 3, "--seed", 4)
    result = ok("interpolate", *common, "-o", target)
    assert result.stdout == f"{target}\n"
    whole = pixels(target)
    assert whole.shape == (256, 5 * 256, 3)
    middle = Image.fromarray(whole[:, 256:512].astype("uint8")).resize((128, 128), Image.Resampling.BOX)
    assert abs(np.asarray(middle).astype(int) - frames[0]).mean() < 12
    assert abs(whole[:, :256] - whole[:, -256:]).max() > 50
    _, record = read_record(target.read_bytes(), "strip.png")
    assert record["weights"] == [[1, 0], [0.5, 0.5], [0, 1]]
    piped = ok("interpolate", *common, "-o", "-")
    assert piped.stdout_bytes == target.read_bytes()


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_goes_there_and_back(frames, subject, other_subject, tmp_path, suffix):
    target = tmp_path / f"way{suffix}"
    common = (subject, other_subject, PROMPT, "--frames", 3, "--steps", 3, "--seed", 4)
    result = ok("interpolate", *common, "--fps", 5, "--json", "-o", target)
    assert json.loads(result.stdout)["paths"] == [str(target)]
    animation = Image.open(target)
    assert animation.n_frames == 4
    order = []
    assert animation.size == (256, 256), "as high as a strip"
    for frame in range(4):
        animation.seek(frame)
        shown = np.asarray(animation.convert("RGB").reduce(2)).astype(int)
        assert animation.info["duration"] == 200
        order.append(int(np.argmin([abs(shown - original).mean() for original in frames])))
    assert order == [0, 1, 2, 1]
    (told,) = json.loads(ok("inspect", target, "--json").stdout)["files"]
    assert told["record"]["weights"] == [[1, 0], [0.5, 0.5], [0, 1]]
    assert told["record"]["prompt"] == PROMPT and told["parameters"].startswith(PROMPT)
    if suffix == ".webp":
        strip_of_frames = enlarged([Image.fromarray(frame.astype("uint8")) for frame in frames])
        assert (np.asarray(animation.convert("RGB")) == np.asarray(strip_of_frames[1])).all()


def test_strip_and_animation_of_odd_sizes():
    pictures = [Image.new("RGB", (30, 20), "red"), Image.new("RGB", (10, 40), "blue")]
    assert strip(pictures).size == (70, 40)
    two = encode_animation("two.gif", [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")], 4, "", {})
    assert Image.open(io.BytesIO(two)).n_frames == 2


def test_a_strip_without_all_references_has_none(subject, other_subject, tmp_path):
    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    bare = tmp_path / "bare.pfz"
    write_bundle(bare, bundle.manifest, {name: bundle.read(name) for name in bundle.files})
    common = (bare, other_subject, subject, PROMPT, "--frames", 3, "--steps", 1)
    ok("interpolate", *common, "-o", tmp_path / "strip.png")
    assert Image.open(tmp_path / "strip.png").size == (3 * 256, 256)


def test_small_pictures_are_enlarged_and_large_ones_stay():
    for size, shown in (
        ((64, 64), (256, 256)),
        ((96, 64), (384, 256)),
        ((30, 512), (30, 512)),
        ((300, 256), (300, 256)),
    ):
        assert [one.size for one in enlarged([Image.new("RGB", size)] * 2)] == [shown] * 2


BAD = {  # arguments, exit code, and our words: none where Typer speaks
    "one subject": (["me.pfz", PROMPT, "-o", "x.png"], 2, "one subject"),
    "no prompt": (["me.pfz", "you.pfz", "-o", "x.png"], 2, "0 prompts"),
    "two prompts": (["me.pfz", "you.pfz", "S*", "S* at sea", "-o", "x.png"], 2, "2 prompts"),
    "numbered subjects": (["me.pfz", "you.pfz", "S1* and S2*", "-o", "x.png"], 5, "in turn"),
    "one frame": (["me.pfz", "you.pfz", PROMPT, "--frames", "1", "-o", "x.png"], 2, ""),
    "two guidance scales": (["me.pfz", "you.pfz", PROMPT, "--subject-guidance", "3,4", "-o", "x.png"], 2, "share one"),
    "a film": (["me.pfz", "you.pfz", PROMPT, "-o", "x.mp4"], 2, ".mp4"),
    "another picture": (["me.pfz", "you.pfz", PROMPT, "-o", "x.tiff"], 2, ".png, .webp or .gif"),
    "no name": (["me.pfz", "you.pfz", PROMPT, "-o", ""], 2, "empty"),
    "a still with fps": (["me.pfz", "you.pfz", PROMPT, "--fps", "8", "-o", "x.png"], 2, "--fps has no effect"),
    "fewer frames than subjects": (
        ["me.pfz", "you.pfz", "me.pfz", PROMPT, "--frames", "2", "-o", "x"],
        2,
        "leaves out",
    ),
    "weights": (["me.pfz", "you.pfz", PROMPT, "--set", "sample.weights=[1,2]", "-o", "x"], 2, "no effect"),
    "a subject behind the prompt": (["me.pfz", PROMPT, "you.pfz", "-o", "x.png"], 2, "'you.pfz' stands behind"),
    "no output": (["me.pfz", "you.pfz", PROMPT], 2, ""),
    "output exists": (["me.pfz", "you.pfz", PROMPT, "-o", "me.pfz/x.png"], 9, "me.pfz"),
    "useless option": (["me.pfz", "you.pfz", PROMPT, "--sampler", "cfg", "--gamma", "1", "-o", "x"], 2, "no effect"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, subject, other_subject, tmp_path, monkeypatch):
    from profusion_cli.runtime.backbone import BaseModel

    monkeypatch.setattr(BaseModel, "__enter__", lambda *a: pytest.fail("the base model was opened"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me.pfz").write_bytes(subject.read_bytes())
    (tmp_path / "you.pfz").write_bytes(other_subject.read_bytes())
    arguments, code, message = BAD[case]
    result = run("interpolate", *arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.stderr
    assert message in " ".join(result.stderr.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me.pfz", "you.pfz"]


def test_subjects_of_different_base_models(subject, base_folder, photo, tmp_path):
    from profusion_cli.runtime.random_base import build_random_base

    build_random_base(tmp_path / "other", seed=3)
    other = tmp_path / "other.pfz"
    ok("finetune", photo, "--preset", "tiny-random", "--base-model", tmp_path / "other", "--steps", 0, "-o", other)
    result = run("interpolate", subject, other, PROMPT, "-o", tmp_path / "x.png")
    assert result.exit_code == 4
    assert "different base models" in result.stderr


@pytest.mark.skipif(not (SHARED / "faces").is_dir(), reason="the photographs are not here")
def test_between_two_people(tmp_path):
    bundles = []
    for face in sorted((SHARED / "faces").glob("*.jpg"))[:2]:
        bundles.append(tmp_path / f"{face.stem}.pfz")
        ok("finetune", face, "--preset", "tiny-random", "--steps", 0, "-o", bundles[-1])
    ok("interpolate", *bundles, PROMPT, "--frames", 2, "--steps", 2, "-o", tmp_path / "strip.png")
    assert Image.open(tmp_path / "strip.png").size == (4 * 256, 256)
