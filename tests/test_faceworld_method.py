"""What the method is for, on the shipped weights of the face world.

The margins leave room for the spread that was measured over other people and prompts; without gamma, say, the pictures
would be the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from profusion_cli.evaluation.runner import Run
from profusion_cli.evaluation.study.reading import build_study
from profusion_cli.evaluation.study.subjects import reference_photo
from profusion_cli.faceworld.__main__ import app
from profusion_cli.faceworld.judges import Judges
from profusion_cli.faceworld.world import SPLITS
from profusion_cli.presets import preset_folder
from tests.conftest import ok

pytestmark = pytest.mark.slow
MODEL = preset_folder() / "faceworld"
PROMPTS = [
    {"text": "S* in anime style", "asks": {"style": "anime"}},
    {"text": "S* on a beach", "asks": {"place": "beach"}},
    {"text": "S* wearing a chef hat", "asks": {"headwear": "chef hat"}},
    {"text": "S* in the snow", "asks": {"place": "snow"}},
    {"text": "S* in a city at night", "asks": {"place": "city"}},
    {"text": "an oil painting of S*", "asks": {"style": "oil painting"}},
    {"text": "S* in a suit in a forest", "asks": {"clothes": "suit", "place": "forest"}},
    {"text": "a half-length portrait of S*", "asks": {"framing": "half-length"}},
]
STUDY = {
    "preset": "faceworld",
    "settings": {
        "dtype": "float32",
        "augment.steps": 10,
        "finetune.steps": 50,
        "finetune.learning_rate": 6e-4,
        "finetune.batch_size": 6,
        "finetune.draws": "independent",
        "sample.steps": 8,
    },
    "subjects": {"faceworld": {"split": "test", "count": 1}},
    "prompts": PROMPTS,
    "metrics": {"faceworld": {}},
    "methods": {
        "fusion": {},
        "plain": {"sample.sampler": "cfg", "sample.subject_guidance": 3.0},
        "strong fusion, gamma 0": {"sample.fusion_guidance": 7.0, "sample.gamma": 0.0},
        "fusion stage": {"sample.sampler": "fusion-only"},
        "fusion stage, gamma 0": {"sample.sampler": "fusion-only", "sample.gamma": 0.0},
    },
}
Scores = list[dict[str, Any]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A person whom no network was trained on, fine-tuned by the ordinary commands."""
    folder = tmp_path_factory.mktemp("study") / "run"
    run = Run(folder, build_study(STUDY, "method", folder), keep_bundles=True)
    with run.open(go_on=False):
        yield run


@pytest.fixture(scope="module")
def scores(study: Run) -> dict[str, Scores]:
    cells = study.cells(study.study.methods)
    study.make(cells)
    study.judge(cells)
    assert not study.maker.failed
    rows = study.results(cells)
    return {name: [row for row in rows if row["method"] == name] for name in STUDY["methods"]}


def adherence(scores: Scores) -> float:
    return float(np.mean([score["scores"]["adherence"] for score in scores]))


def similarity(scores: Scores) -> float:
    return float(np.mean([score["scores"]["identity"] for score in scores]))


def test_the_prompts_of_the_test_ask_for_different_things(scores: dict[str, Scores]) -> None:
    assert [score["prompt"] for score in scores["fusion"]] == [prompt["text"] for prompt in PROMPTS]


def test_fusion_sampling_follows_the_prompt_where_plain_guidance_does_not(scores: dict[str, Scores]) -> None:
    assert similarity(scores["plain"]) < similarity(scores["fusion"]) + 0.1
    assert adherence(scores["fusion"]) > adherence(scores["plain"]) + 0.15
    assert adherence(scores["fusion"]) > 0.8


def test_pictures_are_of_the_subject_and_of_nobody_else(study: Run, scores: dict[str, Scores]) -> None:
    judges = Judges(MODEL / "judges")
    pictures = [Image.open(study.folder / score["file"]) for score in scores["fusion"]]
    others = judges.embeddings([reference_photo(seed) for seed in SPLITS["test"][1:9]])
    assert similarity(scores["fusion"]) > float((judges.embeddings(pictures) @ others.T).mean(0).max()) + 0.25


def test_without_gamma_a_strong_fusion_stage_leads_away_from_the_subject(scores: dict[str, Scores]) -> None:
    assert similarity(scores["strong fusion, gamma 0"]) < similarity(scores["fusion"]) - 0.06


def test_without_gamma_the_fusion_stage_loses_the_subject_and_follows_the_prompt(
    scores: dict[str, Scores],
) -> None:
    with_gamma, without = scores["fusion stage"], scores["fusion stage, gamma 0"]
    assert similarity(without) < similarity(with_gamma) - 0.15
    assert adherence(without) > adherence(with_gamma) + 0.1


def test_the_way_from_one_subject_to_the_next_leads_from_one_face_to_the_other(study: Run, tmp_path: Path) -> None:
    (cell,) = study.cells(study.study.methods[:1])
    reference_photo(SPLITS["test"][1]).save(tmp_path / "photo.png")
    quick = ("--no-augment", "--steps", 12, "--batch-size", 4, "--dtype", "float32")
    ok("finetune", tmp_path / "photo.png", "-o", tmp_path / "other.pfz", "--preset", "faceworld", *quick)
    bundles = (*study.bundles.of(cell, Mock()), tmp_path / "other.pfz")
    ok("interpolate", *bundles, "a photo of S*", "-o", tmp_path / "way", "--frames", 3, "--steps", 6)
    frames = [Image.open(path) for path in sorted((tmp_path / "way").glob("*.png"))]
    judges = Judges(MODEL / "judges")
    photos = judges.embeddings([reference_photo(SPLITS["test"][person]) for person in (0, 1)])
    towards = judges.embeddings(frames) @ (photos[1] - photos[0])
    assert len(towards) == 3
    assert towards[0] < -0.2 and towards[-1] > 0.2
    assert (towards.diff() > -0.1).all(), towards


def test_the_shipped_faces_are_those_that_the_command_draws(tmp_path: Path) -> None:
    faces = sorted((MODEL / "faces").glob("*.png"))
    assert len(faces) == 6
    for face in faces:
        result = CliRunner().invoke(app, ["draw", face.stem, "-o", str(tmp_path / face.name)])
        assert result.exit_code == 0, result.output
        assert np.array_equal(np.asarray(Image.open(face)), np.asarray(Image.open(tmp_path / face.name)))
