"""The face world: its renderer, its captions, its tokenizer, and every stage of its build, on the smallest scale."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer
from typer.testing import CliRunner

from profusion_cli.evaluation.study.subjects import unasked_traits
from profusion_cli.faceworld import data, world
from profusion_cli.faceworld.__main__ import STAGES, app
from profusion_cli.faceworld.captions import caption, vocabulary
from profusion_cli.faceworld.drawing.face import draw_face, head_mask
from profusion_cli.faceworld.drawing.pose import Pose, random_pose
from profusion_cli.faceworld.fitting import Fit
from profusion_cli.faceworld.judges import CLASSES
from profusion_cli.faceworld.measure import roc_auc
from profusion_cli.faceworld.stack import MAX_LENGTH
from profusion_cli.faceworld.stages import random_holes
from profusion_cli.faceworld.world import Context, identity
from profusion_cli.runtime.random_base import write_clip_tokenizer
from tests.conftest import ok


def face(seed: int, pose: Pose | None = None, **context: str) -> np.ndarray:
    return np.asarray(draw_face(identity(seed), Context(**context), pose or Pose()), dtype=float)


def difference(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one - two).mean())


def test_a_seed_is_always_the_same_person_and_picture() -> None:
    assert identity(7) == identity(7)
    assert (data.draw_example(11) == data.draw_example(11)).all()


def test_people_differ_more_than_pictures_of_one_person_do() -> None:
    rng = random.Random(0)
    for seed in range(0, 20, 2):
        again = difference(face(seed), face(seed, Pose(smile=rng.random(), turn=0.005)))
        assert difference(face(seed), face(seed + 1)) > 2 * again


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in world.ATTRIBUTES.items() for value in values[1:]],
)
def test_every_attribute_of_the_context_is_drawn(name: str, value: str) -> None:
    assert difference(face(3), face(3, **{name: value})) > 3


@pytest.mark.parametrize("style", world.STYLES)
def test_a_person_is_recognised_in_every_style(style: str) -> None:
    """The nearest of twelve drawings in a style is of the same person, in colours or in their absence."""
    drawings = [face(seed, style=style) for seed in range(12)]
    others = [face(seed, Pose(smile=0.9, turn=0.008), style=style) for seed in range(12)]
    nearest = [min(range(12), key=lambda j: difference(one, drawings[j])) for one in others]
    assert sum(i == j for i, j in enumerate(nearest)) >= 11


@pytest.mark.parametrize("pose", [Pose(), Pose(x=0.04, tilt=7, size=1.06)])
def test_the_mask_of_a_head_holds_the_head_and_nothing_of_what_lies_around(pose: Pose) -> None:
    """The place and the clothes change nothing deep in the mask; nearly all that does not change lies in it."""
    pictures = [face(5, pose, place=place, clothes=clothes) for place, clothes in (("snow", "suit"), ("city", "plain"))]
    changed = np.abs(pictures[0] - pictures[1]).max(2) > 0
    mask = head_mask(identity(5), Context(), pose)
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    assert 0.1 < mask.mean() < 0.5 and not changed[inner].any()
    assert mask[~changed].mean() > 0.8


def test_most_holes_leave_the_head_whole() -> None:
    numbers = torch.arange(60)
    holes = random_holes(numbers, 64, random.Random(0))[:, 0].numpy()
    heads = np.stack([data.head_of(number) for number in range(60)])
    whole = sum(np.array_equal(hole == 0, head) for hole, head in zip(holes, heads, strict=True))
    assert 24 <= whole <= 48


def test_pictures_are_of_the_size_asked_for() -> None:
    rng = random.Random(1)
    for side in (16, 64, 96):
        assert draw_face(identity(0), world.context(rng), random_pose(rng), side).size == (side, side)


def test_the_splits_share_no_person() -> None:
    seeds = [set(split) for split in world.SPLITS.values()]
    assert sum(map(len, seeds)) == len(set().union(*seeds))


@pytest.mark.parametrize(
    "before", [{"glasses": "round", "hair_style": "long"}, {"glasses": "none", "hair_style": "bald"}]
)
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in world.TRAITS.items() for value in values]
)
def test_a_person_can_be_given_every_trait(name: str, value: str, before: dict[str, str]) -> None:
    who = world.with_traits(replace(identity(3), **before), {name: value})
    assert who.traits()[name] == value
    draw_face(who, Context(), Pose())


def test_what_a_prompt_changes_is_no_trait_of_the_person() -> None:
    seed = next(seed for seed in world.SPLITS["validation"] if identity(seed).glasses != "none")
    own = identity(seed).traits()
    assert own["hair style"] != "bald"
    for asks, lost in (
        ({"place": "beach"}, set()),
        ({"glasses": "none"}, {"glasses", "glasses colour"}),
        ({"glasses": own["glasses"]}, {"glasses"}),
        ({"hair style": "bald"}, {"hair style", "hair colour"}),
        ({"beard": "goatee", "freckles": "yes"}, {"beard", "freckles"}),
    ):
        left = unasked_traits(seed, asks)
        assert own.keys() - left.keys() == lost, asks
        assert left.items() <= own.items()


def test_traits_and_attributes_have_names_that_the_judges_know() -> None:
    for seed in range(200):
        for name, value in {**identity(seed).traits(), **world.context(random.Random(seed)).attributes()}.items():
            assert value in CLASSES[name]


# --- captions ---


def test_captions_use_the_vocabulary_alone_and_say_what_is_asked_for() -> None:
    words, rng = set(vocabulary()), random.Random(0)
    seen = set()
    for seed in range(3000):
        text = caption(identity(seed), world.context(rng), rng, rng.randint(0, 6))
        used = set(re.findall(r"[a-z]+", text))
        assert used <= words, used - words
        assert "  " not in text
        seen |= used
    assert seen == words, "words that no caption uses"


def test_a_caption_names_what_is_not_everyday() -> None:
    rng = random.Random(0)
    for _ in range(50):
        context = Context("anime", "snow", "superman", "crown")
        text = caption(identity(0), context, rng, traits=0)
        assert "anime" in text and "superman" in text
        assert re.search("snow|winter", text) and re.search("crown|king", text)


def test_the_preset_lists_the_vocabulary() -> None:
    from profusion_cli.presets import read_preset

    assert read_preset("faceworld")["base"]["words"] == vocabulary()


def test_the_reduced_tokenizer_cuts_its_words_as_the_whole_one_does(tmp_path: Path) -> None:
    write_clip_tokenizer(tmp_path / "small", vocabulary(), MAX_LENGTH)
    write_clip_tokenizer(tmp_path / "whole")
    small, whole = (CLIPTokenizer.from_pretrained(str(tmp_path / name)) for name in ("small", "whole"))
    assert len(small) < 1000 < len(whole)
    rng = random.Random(2)
    for seed in range(50):
        text = caption(identity(seed), world.context(rng), rng, rng.randint(0, 6))
        assert small.tokenize(text) == whole.tokenize(text)
    assert small("zebra!").input_ids[0] == small.bos_token_id


# --- training ---


def _fit(work: Path, steps: int, name: str = "net") -> tuple[Fit, torch.nn.Module]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 3))
    return Fit(name, model, work, 20, 1e-2, torch.device("cpu"), lambda _: None, every=steps), model


def test_a_fit_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path) -> None:
    def loss_of(stop: int | None):
        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            x = torch.randn(4, 1, 8, 8, generator=generator)
            parameter = next(model.parameters())
            return (model(x.to(parameter.dtype)).float() - 1).square().mean()

        return loss

    fit, model = _fit(tmp_path / "a", 20)
    (tmp_path / "a").mkdir()
    whole = fit.run(loss_of(None)).state_dict()
    (tmp_path / "b").mkdir()
    fit, model = _fit(tmp_path / "b", 6)
    with pytest.raises(KeyboardInterrupt):
        fit.run(loss_of(15))
    fit, model = _fit(tmp_path / "b", 6)
    assert fit.step == 12
    resumed = fit.run(loss_of(None)).state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faceworld") / "model"
    result = CliRunner().invoke(app, ["build", "-o", str(folder), "--scale", "smoke"])
    assert result.exit_code == 0, result.output
    return folder


def test_the_ordinary_commands_run_on_what_build_makes(built: Path, tmp_path: Path) -> None:
    photo = tmp_path / "face.png"
    assert CliRunner().invoke(app, ["draw", "3", "-o", str(photo)]).exit_code == 0
    assert Image.open(photo).size == (64, 64)
    again = CliRunner().invoke(app, ["draw", "4", "-o", str(photo)])
    assert again.exit_code == 9 and "exists" in again.output
    assert CliRunner().invoke(app, ["draw", "3", "-o", "-"]).stdout_bytes == photo.read_bytes()
    model = f"augment.model.id={built}"
    preset = ("--preset", "faceworld", "--base-model", built)
    ok(
        *("finetune", photo, "-o", tmp_path / "me.pfz", *preset, "--promptnet", built / "promptnet.pfz"),
        *("--steps", 1, "--views", 2, "--set", model, "--set", "augment.steps=2"),
    )
    result = ok("sample", tmp_path / "me.pfz", "S* as a zebra", "-o", tmp_path / "out.png", "--steps", 10)
    assert "never taught 'zebra'" in result.stderr
    assert Image.open(tmp_path / "out.png").size == (64, 64)


def test_the_area_under_the_curve_counts_pairs() -> None:
    positive, negative = np.array([0.9, 0.5, 0.5]), np.array([0.5, 0.1])
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert roc_auc(positive, negative) == pytest.approx(np.mean(pairs))


def test_untrained_judges_are_found_out(built: Path) -> None:
    result = CliRunner().invoke(app, ["judge", str(built), "--people", "12"])
    made = json.loads(result.stdout)
    assert made["pictures"] == 48
    assert set(made["accuracy"]) == set(CLASSES)
    assert np.mean(list(made["accuracy"].values())) < 0.7 and 0.3 < made["auc"] < 0.8


def test_a_build_that_is_done_does_nothing(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    result = CliRunner().invoke(app, ["build", "-o", str(built), "--scale", "smoke"])
    assert result.output.count("done already") == len(STAGES)
    assert before == {path: path.stat().st_mtime_ns for path in built.rglob("*")}


@pytest.mark.parametrize(
    "arguments",
    [
        ("draw", "5", "-o", "x.png", "--place", "moon"),
        ("draw", "-o", "x.png", "100000"),
        ("draw", "5", "-o", "x.png", "--split", "nobody"),
        ("judge", "nowhere"),
        ("build", "-o", "x", "--only", "dreams"),
        ("build", "-o", "x", "--scale", "huge"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2 and arguments[-1] in result.output, "what is wrong is named"
    assert not list(tmp_path.iterdir())
