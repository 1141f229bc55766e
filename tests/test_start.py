"""`sample --start-from`: drawing over a picture, all of it or where a mask is light."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from profusion_cli.plans import PlanConfig, exact_plan, late_plan, short_plan
from profusion_cli.runtime.fusion import Guidance, blended, sample_fusion
from tests.conftest import draw_photo, ok, run

PROMPT = "S* at sea"
STEPS = ("--steps", 8)
ALPHAS = torch.linspace(0.999, 0.01, 100, dtype=torch.float64)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def painting(work: Path) -> Path:
    return draw_photo(work / "painting.png", "crimson", (240, 160))


@pytest.fixture(scope="module")
def mask(work: Path) -> Path:
    image = Image.new("L", (240, 160))
    ImageDraw.Draw(image).rectangle((60, 40, 120, 110), fill=255)
    image.save(work / "mask.png")
    return work / "mask.png"


# --- equations -------------------------------------------------------------------------------------------------


def test_what_is_known_is_noised_as_the_rest():
    """Outside of the mask x_t is exactly q(x_t | x_0) of the same noise, whatever the network says."""
    generator = torch.Generator().manual_seed(0)
    x, z, x_0 = (torch.randn((1, 2, 4, 4), generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    mask[..., :2] = 1
    found = blended(x, x_0, mask, 0.3, z)
    assert torch.equal(found[..., :2], x[..., :2])
    assert torch.allclose(found[..., 2:], (0.3**0.5 * x_0 + 0.7**0.5 * z)[..., 2:])
    end = sample_fusion(
        lambda x_t, t, conditions: [x_t + n for n, _ in enumerate(conditions)],
        x,
        [90, 50, 10],
        ALPHAS,
        Guidance((1.0,), 1.0, 1.0, 1.0),
        lambda i, j: z,
        keep=lambda x_t, alpha_bar: blended(x_t, x_0, mask, alpha_bar, z),
    )
    assert torch.allclose(end[..., 2:], x_0[..., 2:]) and not torch.allclose(end[..., :2], x_0[..., :2])


def test_a_late_plan_is_the_end_of_a_plan():
    assert late_plan(exact_plan(50), 1.0) == exact_plan(50)
    late = late_plan(exact_plan(50), 0.75)
    assert [step.index for step in late.steps] == list(range(12, 50)) and late.schedule == 50
    assert len(late_plan(exact_plan(50), 0.01).steps) == 1
    shape = PlanConfig(steps=10, keep=2, fusion_until=0.1, solver="dpm-solver++")
    kept = short_plan(shape, 50, 1, True, 0.0)
    for strength in (0.1, 0.4, 0.7, 1.0):
        steps = late_plan(kept, strength).steps
        assert steps[0].fresh and steps[0].order == 1 and steps[1:] == kept.steps[len(kept.steps) - len(steps) + 1 :]


# --- pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--sampler", "cfg"), ("--speed", "fast", "--set", "sample.steps=10")])
def test_the_less_is_drawn_anew_the_more_is_left(subject, painting, tmp_path, options):
    steps = () if "--speed" in options else STEPS
    whole = np.asarray(Image.open(painting).convert("RGB").crop((40, 0, 200, 160)).resize((128, 128))).astype(int)
    far = {}
    for strength in (0.1, 0.5, 1.0):
        target = tmp_path / f"{strength}.png"
        ok("sample", subject, PROMPT, *steps, *options, "--start-from", painting, "--strength", strength, "-o", target)
        far[strength] = abs(pixels(target) - whole).mean()
    ok("sample", subject, PROMPT, *steps, *options, "-o", tmp_path / "free.png")
    assert far[0.1] < far[0.5] < far[1.0]
    assert (
        abs(pixels(tmp_path / "free.png") - pixels(tmp_path / "1.0.png")).mean()
        < abs(pixels(tmp_path / "free.png") - pixels(tmp_path / "0.1.png")).mean()
    )


def test_outside_of_a_mask_all_stays_as_it_was(subject, painting, mask, tmp_path):
    """To a grey level, away from the seam, in the size that is drawn; and inside it does not."""
    start = ("--start-from", painting, "--inpaint-mask", mask)
    ok("sample", subject, PROMPT, *STEPS, *start, "--width", 192, "--height", 128, "-o", tmp_path / "x.png")
    found = pixels(tmp_path / "x.png")
    before = np.asarray(Image.open(painting).convert("RGB").resize((192, 128), Image.Resampling.LANCZOS)).astype(int)
    inside = np.zeros(found.shape[:2], dtype=bool)
    inside[32:89, 48:97] = True
    away = np.ones_like(inside)
    away[24:98, 40:106] = False
    assert abs(found - before)[away].max() <= 1
    assert abs(found - before)[inside].mean() > 10


@pytest.fixture
def beside(subject: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The subject, in the folder of the pictures, where the commands run."""
    shutil.copy(subject, work)
    monkeypatch.chdir(work)
    return work / subject.name


def test_a_picture_remembers_what_it_was_drawn_over(beside, painting, mask, tmp_path):
    start = ("--start-from", painting.name, "--inpaint-mask", mask.name, "--strength", 0.6)
    ok("sample", beside.name, PROMPT, *STEPS, *start, "-o", tmp_path / "x.png")
    (entry,) = json.loads(ok("inspect", tmp_path / "x.png", "--json").stdout)["files"]
    assert entry["record"]["start"]["strength"] == 0.6 and "Denoising strength: 0.6" in entry["parameters"]
    assert entry["record"]["digital_source_type"].endswith("compositeWithTrainedAlgorithmicMedia")
    assert "picture painting.png" in [origin["what"] for origin in entry["made_from"]]
    before = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").unlink()
    ok(*shlex.split(ok_replay(before, tmp_path))[1:])
    assert (tmp_path / "x.png").read_bytes() == before


def ok_replay(data: bytes, folder: Path) -> str:
    """The command that draws a picture again, as `x.png`."""
    (folder / "x.png").write_bytes(data)
    command = ok("inspect", folder / "x.png", "--replay").stdout
    (folder / "x.png").unlink()
    return command


PLAIN = "a boat"


def test_a_prompt_without_the_subject_is_drawn_by_the_base_model_alone(subject, other_subject, painting, tmp_path):
    """Whoever the subjects are; and the pictures of S* beside it stay as they are."""
    start = (*STEPS, "--start-from", painting, "--strength", 0.6)
    told = ok("sample", subject, PLAIN, PROMPT, *start, "-o", tmp_path / "a").stderr
    assert f"No subject is named in '{PLAIN}'" in told
    ok("sample", other_subject, PLAIN, *start, "-o", tmp_path / "b")
    ok("sample", subject, other_subject, PLAIN, *start, "--areas", "left,right", "-o", tmp_path / "c")
    ok("sample", subject, PROMPT, *start, "-o", tmp_path / "d")
    plain, named = (sorted(tmp_path.glob(f"*/*-{name}-0.png")) for name in ("a-boat", "s-at-sea"))
    assert len(plain) == 3 and len(named) == 2
    assert len({pixels(path).tobytes() for path in plain}) == 1
    assert len({path.read_bytes() for path in named}) == 1
    assert abs(pixels(plain[0]) - pixels(named[0])).max() > 10
    result = run("sample", subject, PLAIN, *STEPS, "-o", tmp_path / "x.png")
    assert result.exit_code == 5 and "would not be in the picture" in result.stderr


@pytest.mark.parametrize("sampler, scale", [("fusion", 4.0), ("cfg", 3.0), ("fusion-only", 3.0)])
def test_a_prompt_without_the_subject_follows_its_text_by_plain_guidance(
    beside, painting, tmp_path, monkeypatch, calls, sampler, scale
):
    options = ("--start-from", painting.name, "--sampler", sampler, "--subject-guidance", 3)
    options += ("--text-guidance", 4) if sampler == "fusion" else ()
    ok("sample", beside.name, PLAIN, *STEPS, *options, "-o", tmp_path / "x.png")
    assert calls == {("unet", 2): 6, ("text", 2): 1} or not calls["promptnet", 1]
    (entry,) = json.loads(ok("inspect", tmp_path / "x.png", "--json").stdout)["files"]
    record = entry["record"]
    assert record["sample"]["sampler"] == "cfg" and record["sample"]["subject_guidance"] == [scale]
    before = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").unlink()
    ok(*shlex.split(ok_replay(before, tmp_path))[1:])
    assert (tmp_path / "x.png").read_bytes() == before
    told = ok("sample", beside.name, PLAIN, *STEPS, *options, "--dry-run").stdout
    assert "12.0 U" in told and "0 of PromptNet" in told


def test_each_subject_is_drawn_over_the_same_picture(subject, other_subject, painting, tmp_path):
    start = ("--start-from", painting, "--strength", 0.5)
    ok("sample", subject, other_subject, PROMPT, *STEPS, *start, "--each", "-o", tmp_path / "each")
    ok("sample", subject, PROMPT, *STEPS, *start, "-o", tmp_path / "alone")
    (one,), (alone,) = ((tmp_path / name).rglob("*.png") for name in (f"each/{subject.stem}", "alone"))
    assert one.read_bytes() == alone.read_bytes()


def test_the_cost_is_of_what_is_drawn(subject, painting):
    told = ok("sample", subject, PROMPT, *STEPS, "--start-from", painting, "--strength", 0.5, "--dry-run").stdout
    assert "Steps: 4 of 8" in told


def test_what_cannot_be_drawn_over_is_told(subject, painting, mask, photo, tmp_path):
    dark = tmp_path / "dark.png"
    Image.new("L", (240, 160)).save(dark)
    cases = {
        ("--strength", 0.5): (2, "--start-from"),
        ("--inpaint-mask", mask): (2, "--start-from"),
        ("--start-from", tmp_path / "none.png"): (5, "none.png"),
        ("--start-from", photo, "--inpaint-mask", mask): (5, "240x160"),
        ("--start-from", painting, "--inpaint-mask", dark): (5, "dark everywhere"),
    }
    for options, (code, said) in cases.items():
        result = run("sample", subject, PROMPT, *options, "-o", tmp_path / "x.png")
        assert result.exit_code == code and said in result.stderr
    for given in (("-o", painting), ("-o", tmp_path / "p", "--sheet", painting)):
        result = run("sample", subject, PROMPT, "--start-from", painting, *given, "--force")
        assert result.exit_code == 2 and "is an input" in result.stderr
    corner = tmp_path / "corner.png"
    edge = Image.new("L", (240, 160))
    ImageDraw.Draw(edge).rectangle((0, 0, 20, 160), fill=255)
    edge.save(corner)
    result = run(
        "sample", subject, PROMPT, "--start-from", painting, "--inpaint-mask", corner, "-o", tmp_path / "x.png"
    )
    assert result.exit_code == 5 and "cut off" in result.stderr
    result = run("sample", subject, PROMPT, "--start-from", painting, "-o", painting, "--force")
    assert result.exit_code == 2 and "is an input" in result.stderr
