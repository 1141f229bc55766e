"""Pictures taken apart, and the judge of structure that is taught with them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_cli.faceworld.damage import KINDS, TAUGHT, UNSEEN, DamagedStream, Scene, draw_damaged
from profusion_cli.faceworld.data import draw_example, to_pixels
from profusion_cli.faceworld.disturbance import disturbed, worn
from profusion_cli.faceworld.drawing.face import head_mask
from profusion_cli.faceworld.drawing.pose import Pose
from profusion_cli.faceworld.judges import (
    AttributeJudge,
    IdentityJudge,
    Judges,
    StructureJudge,
    save_judge,
)
from profusion_cli.faceworld.measure import FADES, check_structure
from profusion_cli.faceworld.world import Context, identity

NUMBERS = range(0, 24, 4)


def difference(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - two).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_damage_begins_at_nothing_and_grows_with_strength(kind: str) -> None:
    by_strength = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        pairs = [(draw_damaged(number, kind, strength), draw_example(number)) for number in NUMBERS]
        by_strength.append(np.mean([difference(*pair) for pair in pairs]))
        assert strength > 0 or all((one == two).all() for one, two in pairs)
    assert by_strength == sorted(by_strength) and by_strength[1] > 0.1 and by_strength[3] > 1


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_the_same_for_the_same_generator_and_not_for_another(kind: str) -> None:
    scene = Scene(identity(3), Context(framing="half-length"), Pose(), 64)
    one, same, *others = (KINDS[kind](scene, random.Random(seed), 0.8) for seed in (1, 1, *range(2, 9)))
    assert (one == same).all()
    assert any((one != other).any() for other in others)


def test_features_alone_change_where_they_are_missing_and_not_the_rest() -> None:
    scene = Scene(identity(2), Context(place="forest"), Pose(), 64)
    changed = (KINDS["features missing"](scene, random.Random(0), 1.0) != scene.picture).any(2)
    head = head_mask(scene.who, scene.context, scene.pose, 64)
    assert changed.any() and not changed[~head].any()


def test_a_step_shows_every_picture_intact_and_damaged_in_a_kind_that_is_taught() -> None:
    stream = DamagedStream(8, 64)
    assert not set(UNSEEN) & set(stream.kinds) and len(UNSEEN) >= 2 and {*TAUGHT, *UNSEEN} == set(KINDS)
    shown = stream[3]
    assert shown.shape == (8, 64, 64, 3) and len(stream.numbers(3)) == 4
    for number, intact, damaged in zip(stream.numbers(3), shown[:4], shown[4:], strict=True):
        assert (intact == draw_example(number)).all() and (damaged != intact).any()
    assert not set(stream.numbers(3)) & set(stream.numbers(4))


def test_wear_leaves_half_of_the_pictures_alone_and_the_others_nearly() -> None:
    pixels = to_pixels(torch.from_numpy(np.stack([draw_example(number, side=64) for number in range(64)])))
    for spoil in (worn, disturbed):
        changes = (spoil(pixels, torch.Generator().manual_seed(0)) - pixels).abs().mean((1, 2, 3))
        assert 16 <= (changes == 0).sum() <= 48
        assert 0.002 < changes.max() < 0.08


def test_a_saved_judge_of_structure_reads_as_it_did(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = StructureJudge(8)
    for one in (AttributeJudge(8), IdentityJudge(8), judge):
        save_judge(one, tmp_path)
    loaded, picture = Judges(tmp_path), draw_example(4)
    (score,) = loaded.structure([Image.fromarray(picture)])
    expected = torch.sigmoid(judge(to_pixels(torch.from_numpy(picture.copy())[None]))).item()
    assert score == pytest.approx(expected, abs=2e-3) and 0 < score < 1
    found = check_structure(loaded, range(2, 8), side=64)
    assert set(found["auc"]) == set(KINDS) and list(found["fading"]) == [str(part) for part in FADES]
    assert found["fading"]["0.0"] == pytest.approx(found["intact"])
