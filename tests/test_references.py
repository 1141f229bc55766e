"""`sample --references`: what PromptNet sees of a subject made of several photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import draw_photo, ok, opened_sampler, run

STEPS = ("--steps", 2)
PROMPT = "S* at sea"


@pytest.fixture(scope="module")
def many(work: Path) -> Path:
    """A subject of three photos."""
    photos = [draw_photo(work / f"of-{colour}.png", colour) for colour in ("tan", "olive", "navy")]
    ok("finetune", *photos, "--preset", "tiny-random", "--steps", 1, "--lr", "1e-3", "-o", work / "many.pfz")
    return work / "many.pfz"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_the_mean_is_that_of_what_each_photo_makes(many):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 4, 16, 16), generator=generator)
    words = {}
    for kind in ("one", "mean"):
        for reference in (1, 2, 3) if kind == "one" else (1,):
            with opened_sampler(many, 2, {"references": kind, "reference": reference}) as sampler:
                words[kind, reference] = sampler.subjects[0].pseudo_word(x, torch.tensor(500))
    each = [words["one", reference] for reference in (1, 2, 3)]
    assert torch.allclose(words["mean", 1], sum(each) / 3, atol=1e-5)
    assert not torch.allclose(each[0], each[1], atol=1e-2)


@pytest.mark.parametrize("batch", [1, 2])
def test_each_picture_sees_the_next_photo(many, tmp_path, batch):
    ok("sample", many, PROMPT, *STEPS, "-n", 4, "--batch-size", batch, "--references", "each", "-o", tmp_path / "each")
    for j in range(4):
        seen = ("--set", f"sample.reference={j % 3 + 1}", "--seed", j)
        ok("sample", many, PROMPT, *STEPS, *seen, "-o", tmp_path / f"{j}.png")
        together = pixels(tmp_path / "each" / f"01-s-at-sea-{j}.png")
        assert abs(together - pixels(tmp_path / f"{j}.png")).max() <= 1


def test_one_photo_is_its_own_mean(subject, tmp_path):
    for kind in ("one", "mean", "each"):
        told = ok("sample", subject, PROMPT, *STEPS, "--references", kind, "-o", tmp_path / f"{kind}.png").stderr
        assert ("--references changes nothing" in told) == (kind != "one")
    assert abs(pixels(tmp_path / "one.png") - pixels(tmp_path / "mean.png")).max() <= 1
    assert (pixels(tmp_path / "one.png") == pixels(tmp_path / "each.png")).all()


def test_the_cost_of_the_mean_is_told(many):
    told = [ok("sample", many, PROMPT, *STEPS, "--references", kind, "--dry-run").stdout for kind in ("one", "mean")]
    counts = [int(text.partition("of its own, ")[2].partition(" of PromptNet")[0]) for text in told]
    assert counts[1] == 3 * counts[0] > 0


def test_a_way_has_no_turns(many, subject, tmp_path):
    given = ("--frames", 2, *STEPS, "--references", "each", "-o", tmp_path / "x.png")
    assert run("interpolate", many, subject, PROMPT, *given).exit_code == 2


def test_a_picture_that_saw_several_photos_has_no_command(many, subject, tmp_path):
    """Of which subjects have unequal numbers: `sample.reference` is one for all of them."""
    both = ("S1* by S2*", *STEPS, "-n", 2, "--references", "each", "-o", tmp_path / "p")
    ok("sample", many, subject, *both)
    _, second = sorted((tmp_path / "p").iterdir())
    assert run("inspect", second, "--replay").exit_code == 5
