"""The metric `faceworld`: its columns, and how they react to what they are for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image

from profusion_cli.evaluation.metrics import Judged, make_metrics
from profusion_cli.evaluation.study.subjects import drawn, reference_photo
from profusion_cli.faceworld.measure import STRENGTHS
from profusion_cli.faceworld.reactions import reactions
from profusion_cli.faceworld.world import SPLITS
from profusion_cli.presets import local_path


def test_every_column_of_the_face_world_falls_when_what_it_is_for_is_spoilt_and_stays_when_it_is_not() -> None:
    found = reactions(Path(local_path("shipped:faceworld/judges")), range(8))
    true = found["true pictures"]
    assert true["adherence"] > 0.95 and true["identity"] > 0.9 and true["details"] > 0.9 and true["structure"] > 0.8
    assert abs(true["copying"]) < 0.05 and abs(true["KID"]) < 0.02

    def lost(spoilt: str, *columns: str) -> list[float]:
        return [true[column] - found[spoilt][column] for column in columns]

    prompt, copied, other = "of what another prompt asks for", "the tuned photo", "of somebody else"
    (adherence,), kept = lost(prompt, "adherence"), lost(prompt, "identity", "details", "structure")
    assert adherence > 0.9 and max(map(abs, kept)) < 0.1
    (copying,), kept = lost(copied, "copying"), lost(copied, "identity", "details", "structure")
    assert copying < -0.05 and max(map(abs, kept)) < 0.1
    (identity, details), kept = lost(other, "identity", "details"), lost(other, "adherence", "structure")
    assert identity > 0.6 and details > 0.4 and max(map(abs, kept)) < 0.1 and abs(found[other]["copying"]) < 0.05
    for trait in ("glasses", "beard"):
        own, details, structure = lost(f"without {trait}", f"details: {trait}", "details", "structure")
        assert own > 0.8 and details > 0.02 and abs(structure) < 0.1

    def along(kind: str, column: str) -> list[float]:
        return [found[name][column] for name in ("true pictures", *(f"{kind}, {strength}" for strength in STRENGTHS))]

    assert_monotone(along("two framings blended", "structure"), along("parts doubled", "structure"))
    assert_monotone([-distance for distance in along("two framings blended", "KID")])
    assert found["blurred"]["KID"] > 0.03
    adherence, identity, details = lost("blurred", "adherence", "identity", "details")
    assert max(abs(adherence), abs(identity), abs(details)) < 0.1


def assert_monotone(*series: list[float]) -> None:
    """Each falls, and a lot by its end."""
    for values in series:
        assert all(after < before + 0.02 for before, after in pairwise(values)), values
        assert values[0] - values[-1] > 0.1, values


def test_adherence_is_told_of_each_thing_that_is_asked_for() -> None:
    (judge,) = make_metrics("faceworld", {}, torch.device("cpu"))
    seed = SPLITS["test"][0]
    picture, photo = drawn(seed, {"headwear": "crown"}, 0), reference_photo(seed)
    (scores,) = judge.score([Judged(picture, photo, "", {"headwear": "crown", "place": "beach"})])
    asked_for = [scores["adherence: headwear"], scores["adherence: place"], scores["adherence: style"]]
    assert asked_for == [1, 0, None] and scores["adherence"] == 0.5


def test_what_is_carried_is_what_the_photo_has_and_nobody_asked_for() -> None:
    (judge,) = make_metrics("faceworld", {}, torch.device("cpu"))
    seed = SPLITS["test"][1]
    photo, asks = reference_photo(seed, place="forest", framing="half-length"), {"headwear": "crown"}
    pictures = [
        drawn(seed, {**asks, **more}, 0)
        for more in ({}, {"place": "forest"}, {"place": "forest", "framing": "half-length"})
    ]

    def carried(photo: Image.Image, asks: dict[str, str]) -> list[float | None]:
        return [scores["carried"] for scores in judge.score([Judged(one, photo, "", asks) for one in pictures])]

    assert carried(photo, asks) == [0, 0.5, 1]
    assert carried(photo, {"place": "forest"}) == [0, 0, 1], "what is asked for is not carried"
    assert carried(reference_photo(seed), asks) == [None] * 3, "an everyday photo"
