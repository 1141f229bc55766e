"""`sample --speed`: what is drawn by a plan, what it costs, what remembers it, and what waits for the device."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from profusion_cli.bundle import read_bundle
from profusion_cli.config import build_config
from profusion_cli.evaluation.cells.bundles import bundle_key
from profusion_cli.evaluation.cells.work import picture_cost
from profusion_cli.evaluation.study.reading import read_study
from profusion_cli.images import read_record
from profusion_cli.jobs.configuration import remembered_config
from profusion_cli.plans import PlanConfig, exact_plan, short_plan
from profusion_cli.presets import preset_folder, read_preset
from profusion_cli.runtime import drawing
from profusion_cli.runtime.denoiser import WordSubject
from profusion_cli.runtime.device import picture_generator
from profusion_cli.runtime.drawing import draw_latents, tokenize
from profusion_cli.runtime.fusion import sample_fusion
from profusion_cli.runtime.noise import composed_noise
from profusion_cli.runtime.sampling import Sampler
from profusion_cli.runtime.schedule import fusion_fraction, schedule_pairs
from tests.conftest import ok, opened_sampler, run
from tests.test_evaluate import cells_in, study_of, write

NETWORKS = ("unet", "promptnet", "text")
STUDIES = preset_folder() / "studies"
WAITED_FOR = ("_local_scalar_dense", "lift_fresh", "nonzero", "equal", "is_nonzero")
FAST = ["--speed", "fast", "--set", "plans.fast.steps=4"]
"""Four of the ten timesteps of the tiny model."""


@pytest.fixture(scope="module")
def sampler(subject: Path) -> Iterator[Sampler]:
    with opened_sampler(subject, steps=10) as sampler:
        yield sampler


@pytest.fixture(scope="module")
def inverted(work: Path, photo: Path) -> Path:
    """A subject whose S* is an ordinary word."""
    target = work / "inverted.pfz"
    arguments = ("--preset", "tiny-random", "--method", "textual-inversion", "--set", "finetune.steps=1")
    ok("finetune", photo, *arguments, "-o", target)
    return target


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--text-guidance", 0],
        ["--fusion-steps", 2],
        FAST,
        [*FAST, "--text-guidance", 0],
        [*FAST, "--set", "plans.fast.word_once=false"],
        [*FAST, "--set", "plans.fast.keep=2", "--fusion-steps", 2],
        [*FAST, "--set", "plans.fast.fusion_until=0.5", "--set", "plans.fast.solver=dpm-solver++"],
        [*FAST, "--sampler", "cfg"],
        [*FAST, "--sampler", "fusion-only"],
        ["--speed", "draft", "--set", "plans.draft.steps=3"],
    ],
)
def test_a_picture_costs_what_the_dry_run_says(calls, subject, tmp_path, options):
    check_cost(calls, [subject], "S* in style", options, tmp_path)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("S* in style", FAST),
        ("S1* beside S2*", FAST),
        ("S* in style", [*FAST, "--areas", "left,right"]),
        ("S* in style", [*FAST, "--subject-guidance", "7,0"]),
        ("S* in style", [*FAST, "--areas", "left,right", "--subject-guidance", "7,0"]),
        ("S1* beside S2*", [*FAST, "--subject-guidance", "7,0"]),
        ("S1* beside S2*", ["--subject-guidance", "3,4"]),
    ],
)
def test_several_subjects_cost_what_the_dry_run_says(calls, subject, other_subject, tmp_path, prompt, options):
    check_cost(calls, [subject, other_subject], prompt, options, tmp_path)


def test_an_ordinary_word_costs_what_the_dry_run_says(calls, inverted, tmp_path):
    check_cost(calls, [inverted], "S* in style", [*FAST, "--sampler", "fusion"], tmp_path, words=2)


def check_cost(counted: Counter, subjects: list, prompt: str, options: list, folder: Path, words: int = 0) -> None:
    """`words`: prompts with an S* that does not change, each encoded once."""
    arguments = ["sample", *subjects, prompt, *options, "-o", folder / "x.png"]
    told = re.search(
        r"(\d+) of its own, (\d+) of PromptNet .* (\d+) of the text encoder", ok(*arguments, "--dry-run").stdout
    )
    assert not counted
    ok(*arguments)
    found = [sum(batch * count for (of, batch), count in counted.items() if of == name) for name in NETWORKS]
    textless = {"cfg", "fusion-only"} & {str(option) for option in options} or "--text-guidance" in options
    once = words + (1 if textless else 2)  # the empty prompt, and the twin
    assert [int(number) for number in told.groups()] == [found[0], found[1], found[2] - once]


def drawn_by(sampler: Sampler, shape: PlanConfig | None, monkeypatch, **changes) -> dict:
    """The timesteps and the noise of a picture, by the exact plan where there is no shape of another."""
    seen: dict = {"noise": {}}

    def walked(eps, latents, timesteps, alphas_cumprod, guidance, noise, **options):
        def logged(i: int, j: int) -> torch.Tensor:
            return seen["noise"].setdefault((i, j), noise(i, j))

        seen.update(timesteps=timesteps, start=latents, alphas_cumprod=alphas_cumprod)
        return sample_fusion(eps, latents, timesteps, alphas_cumprod, guidance, logged, **options)

    monkeypatch.setattr(drawing, "sample_fusion", walked)
    settings = replace(sampler.settings, **changes)
    plan = (
        exact_plan(settings.steps, settings.fusion_steps)
        if shape is None
        else short_plan(shape, settings.steps, settings.fusion_steps, True, settings.eta)
    )
    tokens = tokenize(sampler.base, sampler.tokens[0].prompt, sampler.subjects, ["a person"], settings, "a photo of S*")
    chosen = (tokens, settings, plan, (7.0,), [picture_generator(0, 0)])
    seen["latents"] = draw_latents(sampler.base, sampler.unet, sampler.subjects, *chosen)
    return seen


@pytest.mark.parametrize("changes", [{}, {"fusion_steps": 2}, {"eta": 1.0}])
def test_a_plan_draws_at_timesteps_and_by_noise_of_the_exact_one(sampler, monkeypatch, changes):
    exact = drawn_by(sampler, None, monkeypatch, **changes)
    fast = drawn_by(sampler, PlanConfig(steps=4), monkeypatch, **changes)
    kept = [0, 3, 6, 9]
    assert fast["timesteps"] == [exact["timesteps"][index] for index in kept]
    torch.testing.assert_close(fast["start"], exact["start"], rtol=0, atol=0)
    pairs = schedule_pairs(
        exact["timesteps"], exact["alphas_cumprod"], float(sampler.base.scheduler.final_alpha_cumprod)
    )
    left = [1 - fusion_fraction(*alpha_bars, 1.0) for _, *alpha_bars in pairs]
    for j in range(changes.get("fusion_steps", 1)):
        for i, (first, behind) in enumerate(zip(kept, [*kept[1:], 10], strict=True)):
            noises = [exact["noise"][index, j] for index in range(first, behind)]
            torch.testing.assert_close(fast["noise"][i, j], composed_noise(noises, left[first:behind]))
    assert not torch.allclose(fast["latents"], exact["latents"], atol=1e-3)


def test_all_steps_by_a_plan_are_the_exact_picture(sampler, monkeypatch):
    exact = drawn_by(sampler, None, monkeypatch)
    whole = drawn_by(sampler, PlanConfig(steps=10, word_once=False), monkeypatch)
    assert torch.equal(whole["latents"], exact["latents"])


@pytest.mark.parametrize("speed", ["exact", "fast", "a word"])
def test_no_step_waits_for_the_device(sampler, monkeypatch, speed):
    """Nothing is read from tensors while they are computed with, and none is made of numbers, which go over and are
    waited for; noise goes over without waiting (`to_device`)."""
    seen: Counter[str] = Counter()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen[str(function)] += 1
            return function(*args, **(kwargs or {}))

    def walked(*args, **kwargs):
        with torch.inference_mode(False), torch.no_grad(), Watched():  # which sees no small parts in inference mode
            return sample_fusion(*args, **kwargs)

    monkeypatch.setattr(drawing, "sample_fusion", walked)
    plan = short_plan(PlanConfig(steps=4), 10, 1, True, 0.0) if speed == "fast" else exact_plan(4)
    subjects = (
        [WordSubject(torch.ones(2, sampler.base.text.embedding_dim), "a person")]
        if speed == "a word"
        else sampler.subjects
    )
    tokens = tokenize(
        sampler.base, sampler.tokens[0].prompt, subjects, ["a person"], sampler.settings, sampler.concept_prompt
    )
    chosen = (tokens, sampler.settings, plan, (7.0,), [picture_generator(0, 0)])
    draw_latents(sampler.base, sampler.unet, subjects, *chosen)
    assert seen["aten.convolution.default"] > 0
    assert not seen.keys() & {f"aten.{name}.default" for name in WAITED_FOR}


def test_a_picture_remembers_its_plan(subject, tmp_path):
    target = tmp_path / "x.png"
    ok("sample", subject, "S* in style", *FAST, "-o", target)
    parameters, record = read_record(target.read_bytes(), "x.png")
    assert record["sample"]["speed"] == "fast"
    assert record["plan"]["steps"] == 4
    assert "Steps: 4," in parameters and "Speed: fast" in parameters
    assert "fast, 4 of 10 steps" in ok("inspect", target).stdout
    ok("sample", subject, "S* in style", "--speed", "fast", "-o", tmp_path / "y.png")
    assert "fast, 10 of 10 steps" in ok("inspect", tmp_path / "y.png").stdout
    ok("sample", subject, "S* in style", "--steps", 2, "-o", tmp_path / "z.png")
    assert "plan" not in read_record((tmp_path / "z.png").read_bytes(), "z.png")[1]


def test_a_bundle_of_before_is_drawn_exactly(subject):
    """Its configuration knows nothing of plans."""
    manifest = remembered_config(read_bundle(subject.read_bytes(), "me.pfz"))
    before = {key: value for key, value in manifest.items() if key != "plans"}
    before["sample"] = {key: value for key, value in before["sample"].items() if key != "speed"}
    assert build_config(before).sample.speed == "exact"


def test_the_way_between_subjects_is_drawn_by_a_plan(calls, subject, other_subject, tmp_path):
    arguments = ("interpolate", subject, other_subject, "S* in style", "--frames", 3, *FAST)
    told = re.search(r"(\d+) of its own", ok(*arguments, "-o", tmp_path / "way.png", "--dry-run").stdout)
    ok(*arguments, "-o", tmp_path / "way.png")
    found = sum(batch * count for (of, batch), count in calls.items() if of == "unet")
    ends = 2 * 4 * 5
    assert found == int(told[1]) + ends


def test_prompts_that_cost_differently_are_told_apart(subject, other_subject, tmp_path):
    both = ("S* at sea", "S1* beside S2*")
    told = ok("sample", subject, other_subject, *both, "-o", tmp_path, "--steps", 2, "--dry-run").stdout
    assert re.findall(r"of '(.*)' takes .*: (\d+) of its own", told) == [(both[0], "14"), (both[1], "12")]


def test_a_dry_run_tells_the_plan(subject, tmp_path):
    shape = {"steps": 5, "keep": 2, "fusion_until": 0.5, "solver": "dpm-solver++"}
    keys = [part for key, value in shape.items() for part in ("--set", f"plans.fast.{key}={value}")]
    told = ok("sample", subject, "S* in style", "--speed", "fast", *keys, "-o", tmp_path / "x.png", "--dry-run").stdout
    for line in (
        "Steps: 5 of 10, 1, 3, 5, 8, 10",
        "asked for anew in 1, 5, 10",
        "fusion stage runs in 1, 3, 5",
        "DPM-Solver++ takes 8",
        "S* is computed once",
    ):
        assert line in told


def test_options_that_contradict_a_plan_are_told_of(subject, tmp_path):
    refused = run("sample", subject, "S* in style", *FAST, "--steps", 7, "-o", tmp_path / "x.png")
    assert refused.exit_code == 2
    assert "--steps" in refused.stderr and "plans.fast.steps" in refused.stderr
    keys = ("--set", "plans.fast.fusion_from=0.5", "--set", "plans.fast.fusion_until=0.2")
    empty = run("sample", subject, "S* in style", "--speed", "fast", *keys, "-o", tmp_path / "x.png")
    assert empty.exit_code == 3
    assert "fusion_until" in empty.stderr


def test_another_order_of_memory_draws_the_same_picture(sampler):
    """That of before `channels_last`, which networks have."""
    plan, chosen = exact_plan(3), (sampler.tokens[0], replace(sampler.settings, steps=3))

    def pixels() -> np.ndarray:
        latents = draw_latents(
            sampler.base, sampler.unet, sampler.subjects, *chosen, plan, (7.0,), [picture_generator(0, 0)]
        )
        return np.asarray(sampler.base.decode(latents)[0]).astype(int)

    weight = next(w for w in sampler.unet.parameters() if w.dim() == 4 and w.shape[2] > 1)
    assert not weight.is_contiguous()
    before = pixels()
    try:
        sampler.unet.to(memory_format=torch.contiguous_format)
        assert weight.is_contiguous()
        assert abs(pixels() - before).max() <= 1
    finally:
        sampler.unet.to(memory_format=torch.channels_last)


PLANS = {
    "exact": {"sample.speed": "exact"},
    "fast": {"sample.speed": "fast", "sweep": {"plans.fast.steps": [1, 2]}},
    "base": {"kind": "base"},
}


def test_a_study_tunes_once_for_all_plans_and_tells_what_they_cost(tmp_path):
    study = study_of(
        tmp_path,
        methods={name: {"augment": False, **method} if name != "base" else method for name, method in PLANS.items()},
        settings={"sample.steps": 3, "finetune.steps": 1, "finetune.batch_size": 2},
        outputs={"table": {"title": "All", "columns": ["U", "identity"]}},
        pairs=None,
    )
    study = {key: value for key, value in study.items() if value is not None}
    cells = cells_in(write(tmp_path, study), tmp_path / "run")
    assert len({(cell.subject.name, bundle_key(cell)) for cell in cells if cell.method.kind == "subject"}) == 2
    assert len({cell.mark for cell in cells}) == len(cells)
    costs = {cell.method.name: picture_cost(cell).unet for cell in cells}
    assert costs == {"exact": 15, "fast, steps 1": 5, "fast, steps 2": 10, "base": 6}
    ok("evaluate", tmp_path / "study.yaml", "-o", tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]
    assert {row["scores"]["U"] for row in rows if row["method"] == "base"} == {6.0}
    assert sum(name.startswith("U") for name in rows[0]["scores"]) == 1
    of_base = {cell.mark for cell in cells if cell.method.kind == "base"}
    faster = {**study, "settings": {**study["settings"], "sample.speed": "fast"}}
    again = cells_in(write(tmp_path, faster), tmp_path / "run")
    assert {cell.mark for cell in again if cell.method.kind == "base"} == of_base


def test_a_study_draws_exactly_unless_it_names_a_speed(tmp_path):
    """Whatever its preset does: methods that name a sampler would differ in the plan besides."""
    preset = tmp_path / "fast.yaml"
    preset.write_text(yaml.safe_dump({**read_preset("tiny-random"), "sample": {"speed": "fast"}}))

    def speeds(**settings: object) -> set[str]:
        read = read_study(str(write(tmp_path, {**study_of(tmp_path, settings=settings), "preset": str(preset)})))
        return {read.config(method).sample.speed for method in read.methods}

    assert speeds() == {"exact"}
    assert speeds(**{"sample.speed": "draft"}) == {"draft"}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_name_their_plan(path):
    study = yaml.safe_load(path.read_text())
    named = {"sample.speed", "sample.steps"} if study["preset"] == "faceworld" else {"sample.speed"}
    assert named <= study["settings"].keys()
