"""`sample --score` and `--best`: likeness to the subject, told and recorded, and what is kept by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from profusion_cli.evaluation import metrics
from profusion_cli.evaluation.metrics import Judged
from profusion_cli.images import read_record
from tests.conftest import ok, run

PROMPTS = ("S* at sea", "S* in style")
STEPS = ("--steps", 2)


class Brightness:
    """Judges by how bright a picture is, beside the photo."""

    columns = ("ArcFace",)

    def score(self, pictures: list[Judged]) -> list[dict[str, float]]:
        assert all(item.photo.size[0] == item.photo.size[1] > 0 for item in pictures)
        return [{"ArcFace": sum(item.picture.convert("L").histogram()[128:]) / 2**14} for item in pictures]


@pytest.fixture(autouse=True)
def _bright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "make_metrics", lambda name, options, device: [Brightness()])


def scores_in(folder: Path) -> dict[str, float]:
    return {path.name: read_record(path.read_bytes(), "x")[1]["score"]["value"] for path in folder.iterdir()}


def test_scores_are_told_and_recorded(subject, tmp_path):
    arguments = ("sample", subject, *PROMPTS, *STEPS, "-n", 2, "--score", "ArcFace", "-o", tmp_path / "p", "--json")
    result = ok(*arguments)
    told = {Path(one["path"]).name: one["score"] for one in json.loads(result.stdout)["pictures"]}
    assert {name: score["value"] for name, score in told.items()} == scores_in(tmp_path / "p") and len(told) == 4
    assert all(score["by"] == "ArcFace" and f"ArcFace {score['value']}" in result.stderr for score in told.values())


def test_the_best_of_each_prompt_are_kept(subject, tmp_path):
    common = ("sample", subject, *PROMPTS, *STEPS, "-n", 3, "--score", "ArcFace")
    ok(*common, "-o", tmp_path / "all")
    ok(*common, "--best", 1, "-o", tmp_path / "best", "--sheet", tmp_path / "sheet.png")
    every, best = scores_in(tmp_path / "all"), scores_in(tmp_path / "best")
    assert len(set(every.values())) == 6 and len(best) == 2
    for number in ("01", "02"):
        own = {name: score for name, score in every.items() if name.startswith(number)}
        winner = max(own, key=own.get)
        assert best[winner] == own[winner]
        assert (tmp_path / "best" / winner).read_bytes() == (tmp_path / "all" / winner).read_bytes()
    one = (*common[:2], PROMPTS[0], *common[4:])
    ok(*one, "--best", 1, "-o", tmp_path / "one.png")
    assert read_record((tmp_path / "one.png").read_bytes(), "x")[1]["score"]["value"] == max(
        score for name, score in every.items() if name.startswith("01")
    )


def test_without_it_nothing_is_judged(subject, tmp_path):
    ok("sample", subject, PROMPTS[0], *STEPS, "-o", tmp_path / "x.png")
    assert "score" not in read_record((tmp_path / "x.png").read_bytes(), "x")[1]


def test_what_cannot_be_scored_is_told(subject, other_subject, tmp_path):
    cases = [
        ((subject,), ("--score", "taste"), "taste"),
        ((subject,), ("-n", 2, "--best", 1), "--score"),
        ((subject,), ("-n", 2, "--score", "ArcFace", "--best", 2), "keeps all"),
        ((subject, other_subject), ("--score", "ArcFace"), "one subject"),
        ((subject, other_subject), ("--score", "ArcFace", "--each"), "--each"),
    ]
    for subjects, options, said in cases:
        result = run("sample", *subjects, PROMPTS[0], *STEPS, *options, "-o", tmp_path / "p")
        assert result.exit_code == 2 and said in result.stderr
    assert not (tmp_path / "p").exists()


def test_choices_and_marks_in_prompts(subject, photo, tmp_path):
    """Each choice is a prompt; a weight is told of, and drawn as plain text."""
    result = ok("sample", subject, "S* in a {red|(blue:1.2)} hat", *STEPS, "-o", tmp_path / "p")
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == ["01-s-in-a-red-hat-0.png", "02-s-in-a-blue-1-2-hat-0.png"]
    assert "'(blue:1.2)'" in result.stderr and "plain text" in result.stderr
    tuning = ("--preset", "tiny-random", "--no-augment", "--steps", 1, "--set", "sample.steps=2")
    ok("finetune", photo, *tuning, "--draw", "S* {a|b}", "--pictures", tmp_path / "d", "-o", tmp_path / "me.pfz")
    assert len(list((tmp_path / "d").iterdir())) == 2


def test_lines_with_settings_are_drawn_as_they_say(subject, tmp_path):
    """As single commands draw them; the models are loaded once."""
    lines = [
        '{"prompt": "S* at sea", "seed": 5, "text_guidance": 1}',
        "S* in style",
        "{prompt: S* on land, num_images: 2}",
    ]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    ok(
        "sample",
        subject,
        *STEPS,
        "--prompts",
        tmp_path / "prompts.txt",
        "-o",
        tmp_path / "all",
        "--sheet",
        tmp_path / "s.png",
    )
    alone = {
        "01-s-at-sea-5": ("S* at sea", "--seed", 5, "--text-guidance", 1),
        "02-s-in-style-0": ("S* in style",),
        "03-s-on-land-0": ("S* on land",),
        "03-s-on-land-1": ("S* on land", "--seed", 1),
    }
    assert {path.stem for path in (tmp_path / "all").iterdir()} == set(alone)
    for name, given in alone.items():
        ok("sample", subject, *STEPS, *given, "-o", tmp_path / f"{name}.png")
        together, single = (np.asarray(Image.open(folder / f"{name}.png")) for folder in (tmp_path / "all", tmp_path))
        assert abs(together.astype(int) - single.astype(int)).max() <= 1
    assert len(read_record((tmp_path / "s.png").read_bytes(), "s.png")[1]["pictures"]) == 4
    each = run("sample", subject, *STEPS, "--prompts", tmp_path / "prompts.txt", "--each", "-o", tmp_path / "each")
    assert each.exit_code == 2 and "Line 1" in each.stderr
    (tmp_path / "prompts.txt").write_text('S* at sea\n{"prompt": "no placeholder", "seed": 1}')
    assert run("sample", subject, "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "no").exit_code == 5
    assert not (tmp_path / "no").exists()
