"""`sample`: what it costs, what it draws, and what must not change it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_cli.bundle import read_bundle
from profusion_cli.errors import ConfigError
from profusion_cli.images import read_record
from profusion_cli.plans import exact_plan
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import picture_generator, resolve_placement
from profusion_cli.runtime.drawing import draw_latents, tokenize
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.sampling import Sampler
from profusion_cli.samplers import SAMPLERS, SamplerName, parse_areas, subject_weights
from profusion_cli.sampling import SampleConfig
from tests.conftest import ok, opened_sampler, run


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def drawn(tmp_path, *arguments) -> np.ndarray:
    """The one picture that these arguments draw, in two steps unless they say otherwise."""
    target = tmp_path / "drawn.png"
    steps = () if "--steps" in arguments else ("--steps", 2)
    ok("sample", *arguments, *steps, "-o", target, "--force", "-q")
    return pixels(target)


def test_one_step_costs_two_unet_calls_and_two_promptnet_calls(calls, subject, tmp_path):
    """Batches of 2 and 3 per picture; prompts without S* are encoded once per run, however many steps."""
    ok("sample", subject, "S* in style", "--steps", 4, "-o", tmp_path / "x.png")
    assert calls.pop(("unet", 2)) == 4
    assert calls.pop(("unet", 3)) == 4
    assert calls.pop(("promptnet", 1)) == 8
    assert calls.pop(("text", 1)) == 2 + 8  # "" and the twin once; gamma S* and S* at every step
    assert not calls


def test_pictures_of_a_batch_share_the_calls(calls, subject, tmp_path):
    ok("sample", subject, "S* in style", "S* at sea", "-n", 3, "--batch-size", 3, "--steps", 2, "-o", tmp_path)
    assert calls["unet", 6] == calls["unet", 9] == 4
    assert calls["promptnet", 3] == 8
    assert calls["text", 1] == 3  # the empty prompt, and two twins


@pytest.mark.parametrize(
    ("options", "unet", "promptnet"),
    [
        (["--fusion-steps", 0], {3: 2}, 2),
        (["--fusion-steps", 2], {2: 4, 3: 2}, 6),
        (["--sampler", "fusion-only"], {2: 2}, 2),
        (["--sampler", "cfg"], {2: 2}, 2),
        (["--text-guidance", 0], {2: 4}, 4),
    ],
)
def test_what_the_variants_cost(calls, subject, tmp_path, options, unet, promptnet):
    ok("sample", subject, "S* in style", "--steps", 2, *options, "-o", tmp_path / "x.png")
    assert {batch: count for (name, batch), count in calls.items() if name == "unet"} == unet
    assert calls["promptnet", 1] == promptnet


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_networks_draw_the_same_picture(subject, tmp_path, monkeypatch, backend):
    """To a grey level; traced alone, and PromptNet by the code that is compiled by default, which takes a minute."""
    plain = torch.nn.Module.compile
    compiled = []

    def compile_with(self, **options):
        compiled.append(type(self).__name__)
        if backend == "eager" or isinstance(self, PromptNet):
            plain(self, dynamic=options["dynamic"], backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with)
    arguments = ["sample", subject, "S* in style", "--steps", 2, "--sampler", "cfg", "--dtype", "float32"]
    ok(*arguments, "-o", tmp_path / "plain.png")
    assert not compiled
    ok(*arguments, "--compile", "-o", tmp_path / "compiled.png")
    assert compiled == ["PromptNet", "UNet2DConditionModel"]
    assert abs(pixels(tmp_path / "plain.png") - pixels(tmp_path / "compiled.png")).max() <= 1


def test_where_nothing_can_be_compiled_that_is_told(subject, tmp_path, monkeypatch):
    def broken(self, *args, **kwargs):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: setattr(self, "_compiled_call_impl", broken))
    failed = run("sample", subject, "S* in style", "--steps", 2, "--compile", "-o", tmp_path / "x.png")
    assert failed.exit_code == 6
    assert "--compile" in failed.stderr
    assert run("sample", subject, "S* in style", "--steps", 2, "-o", tmp_path / "x.png").exit_code == 0


def test_batch_size_and_company_change_no_picture(subject, tmp_path):
    """Picture j of every prompt belongs to seed + j."""
    ok("sample", subject, "S* at sea", "S* on land", "-n", 3, "--batch-size", 3, "--steps", 3, "-o", tmp_path / "many")
    ok("sample", subject, "S* on land", "-n", 3, "--batch-size", 2, "--steps", 3, "-o", tmp_path / "few")
    alone = drawn(tmp_path, subject, "S* on land", "--seed", 2, "--steps", 3)
    for j in range(3):
        many = pixels(tmp_path / "many" / f"02-s-on-land-{j}.png")
        few = pixels(tmp_path / "few" / f"01-s-on-land-{j}.png")
        assert abs(many - few).max() <= 1
    assert abs(many - alone).max() <= 1
    assert abs(pixels(tmp_path / "many" / "02-s-on-land-0.png") - many).max() > 20


def test_the_same_command_draws_the_same_bytes(subject, tmp_path):
    for name in ("a.png", "b.png"):
        ok("sample", subject, "S* at sea", "--steps", 2, "-o", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.fixture(scope="module")
def plain(subject, tmp_path_factory) -> np.ndarray:
    return drawn(tmp_path_factory.mktemp("plain"), subject, "S* in style")


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", 1],
        ["--steps", 3],
        ["--negative-prompt", "blurry"],
        ["--sampler", "cfg"],
        ["--sampler", "fusion-only"],
        ["--fusion-steps", 0],
        ["--fusion-steps", 2],
        ["--gamma", 0.1],
        ["--gamma-on", "embedding"],
        ["--subject-prompt", "concept"],
        ["--subject-guidance", 2],
        ["--text-guidance", 1],
        ["--fusion-guidance", 2],
        ["--fusion-eta", 0.3],
        ["--eta", 0.8],
        ["--class-word", "a dog"],
        ["--set", "class_word=a dog"],
        ["--width", 64],
        ["--height", 192],
        ["--set", "concept_prompt=a picture of S*", "--subject-prompt", "concept"],
    ],
)
def test_every_option_does_something(subject, plain, tmp_path, options):
    changed = drawn(tmp_path, subject, "S* in style", *options)
    assert plain.shape != changed.shape or abs(plain - changed).max() > 0


OTHER = {
    **{"fusion_steps": 2, "gamma": 0.1, "gamma_on": "embedding", "fusion_guidance": 2.0, "fusion_eta": 0.3},
    **{"subject_prompt": "concept", "text_guidance": 1.0, "eta": 0.8},
}


@pytest.fixture(scope="module")
def sampler(subject) -> Iterator[Sampler]:
    """One subject, loaded, to be drawn by many settings."""
    with opened_sampler(subject, steps=2) as sampler:
        yield sampler


@pytest.mark.parametrize(("name", "fusion_steps"), [("fusion", 0), ("fusion", 1), ("fusion-only", 1), ("cfg", 1)])
def test_a_sampler_looks_at_its_own_settings_alone(sampler, name, fusion_steps):
    """What the table says is unused changes nothing, all of it together; what it says is used, each alone, does."""
    prompt, words, concept = sampler.tokens[0].prompt, ["a person"], sampler.concept_prompt

    def with_settings(**changes) -> np.ndarray:
        settings = replace(sampler.settings, sampler=name, fusion_steps=fusion_steps)
        settings = replace(settings, **changes)
        tokens = tokenize(sampler.base, prompt, sampler.subjects, words, settings, concept)
        kind = SAMPLERS[name]
        plan = exact_plan(settings.steps, kind.fusion_steps(settings.fusion_steps), kind.refinement)
        chosen = (tokens, settings, plan, (7.0,), [picture_generator(0, 0)])
        latents = draw_latents(sampler.base, sampler.unet, sampler.subjects, *chosen)
        return np.asarray(sampler.base.decode(latents)[0]).astype(int)

    plain, unused = with_settings(), SAMPLERS[name].unused(fusion_steps)
    assert abs(plain - with_settings(**{setting: OTHER[setting] for setting in unused})).max() == 0
    for setting in OTHER.keys() - unused:
        assert abs(plain - with_settings(**{setting: OTHER[setting]})).max() > 0, setting


def test_the_table_has_the_samplers_that_can_be_chosen():
    assert set(SAMPLERS) == set(get_args(SamplerName))


def test_gamma_of_one_on_either_side_is_the_same(subject, tmp_path):
    one = drawn(tmp_path, subject, "S* in style", "--gamma", 1, "--gamma-on", "hidden")
    two = drawn(tmp_path, subject, "S* in style", "--gamma", 1, "--gamma-on", "embedding")
    assert abs(one - two).max() == 0


def test_sizes(subject, tmp_path):
    assert drawn(tmp_path, subject, "S*", "--width", 192, "--height", 64).shape == (64, 192, 3)
    result = run("sample", subject, "S*", "--width", 100, "-o", tmp_path / "x.png")
    assert result.exit_code == 3
    assert "multiple of 64" in result.stderr


# --- several subjects ----------------------------------------------------------------------------------------


def test_two_subjects(calls, subject, other_subject, tmp_path):
    ok("sample", subject, other_subject, "S* at sea", "--steps", 2, "-o", tmp_path / "each.png")
    assert {batch: count for (name, batch), count in calls.items() if name == "unet"} == {3: 2, 4: 2}
    calls.clear()
    ok("sample", subject, other_subject, "S1* and S2* at sea", "--steps", 2, "-o", tmp_path / "joint.png")
    assert {batch: count for (name, batch), count in calls.items() if name == "unet"} == {2: 2, 4: 2}
    assert abs(pixels(tmp_path / "each.png") - pixels(tmp_path / "joint.png")).max() > 0
    _, record = read_record((tmp_path / "joint.png").read_bytes(), "joint.png")
    assert record["text"] == "a person and a dog at sea"
    assert [entry["name"] for entry in record["subjects"]] == ["me.pfz", "you.pfz"]


def test_areas_are_spans_of_the_width():
    assert parse_areas("left, right") == ((0.0, 0.5), (0.5, 1.0))
    assert parse_areas("0-.4,0.6-1") == ((0.0, 0.4), (0.6, 1.0))


@pytest.mark.parametrize("text", ["", "top,right", "0.5-0.2,right", "left,0.5-1.5", "left,", "0-0"])
def test_what_is_no_area_is_refused(text):
    with pytest.raises(ConfigError, match="no area"):
        SampleConfig(areas=text)


def test_with_areas_each_subject_has_the_whole_guidance():
    own = SampleConfig(subject_guidance=(4.0,), areas="left,right")
    assert subject_weights(replace(own, areas=None), 2) == ((2.0, 2.0), (0.5, 0.5))
    assert subject_weights(own, 2) == ((4.0, 4.0), (0.5, 0.5))
    for subjects in (1, 3):
        with pytest.raises(ConfigError, match=f"2 area.*{subjects} subject"):
            subject_weights(own, subjects)


def test_two_subjects_have_areas_of_their_own(subject, other_subject, tmp_path):
    prompt = ("S1* and S2* at sea", "--steps", 2)
    for name, areas in {"plain": (), "areas": ("--areas", "left,right"), "swapped": ("--areas", "right,left")}.items():
        ok("sample", subject, other_subject, *prompt, *areas, "-o", tmp_path / f"{name}.png")
    plain, areas, swapped = (pixels(tmp_path / f"{name}.png") for name in ("plain", "areas", "swapped"))
    assert abs(plain - areas).max() > 1 and abs(areas - swapped).max() > 1
    _, record = read_record((tmp_path / "areas.png").read_bytes(), "areas.png")
    assert record["sample"]["areas"] == "left,right"
    assert run("sample", subject, "S* at sea", "--areas", "left,right", "-o", tmp_path / "x.png").exit_code == 3
    way = ("S* at sea", "--set", "sample.areas=left,right", "-o", tmp_path / "x.png")
    assert run("interpolate", subject, other_subject, *way).exit_code == 2


def test_a_subject_of_no_weight_is_not_there(subject, other_subject, tmp_path):
    """With all of the guidance and of the weights on one subject, it is that subject alone."""
    alone = drawn(tmp_path, subject, "S* at sea", "--class-word", "a person")
    both = drawn(tmp_path, subject, other_subject, "S* at sea", "--class-word", "a person", "--subject-guidance", "7,0")
    assert abs(alone - both).max() <= 1
    mixed = drawn(tmp_path, subject, other_subject, "S* at sea", "--class-word", "a person")
    assert abs(alone - mixed).max() > 1


def test_guidance_and_weights():
    def shares(subjects, **settings):
        return subject_weights(SampleConfig(**settings), subjects)

    assert shares(1) == ((7.0,), (1.0,))
    assert shares(2) == ((3.5, 3.5), (0.5, 0.5))
    assert shares(2, weights=(3.0, 1.0)) == ((5.25, 1.75), (0.75, 0.25))
    assert shares(2, subject_guidance=(6.0, 2.0)) == ((6.0, 2.0), (0.75, 0.25))
    assert shares(2, subject_guidance=(6.0, 2.0), weights=(1.0, 1.0)) == ((6.0, 2.0), (0.5, 0.5))
    for settings in ({"subject_guidance": (1.0, 2.0, 3.0)}, {"weights": (1.0,)}):
        with pytest.raises(ConfigError, match="2 subject"):
            shares(2, **settings)


def test_tuned_weights_are_the_base_plus_the_weighted_mean_of_the_changes(base_folder):
    from profusion_cli.config import BaseConfig
    from profusion_cli.runtime.changes import tuned_weights

    unet = BaseModel(BaseConfig(str(base_folder)), resolve_placement("cpu", "auto", False)).unet
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    before = dict(unet.named_parameters())
    one = torch.ones_like(before[name])
    tuned = tuned_weights(before, [{name: one}, {name: 5 * one}, {}], [2.0, 1.0, 1.0])
    assert set(tuned) == {name}
    torch.testing.assert_close(tuned[name], before[name] + (2 * 1 + 1 * 5) / 4)


# --- outputs -------------------------------------------------------------------------------------------------


def test_files_names_and_records(subject, photo, tmp_path):
    result = ok(
        "sample",
        subject,
        "S* in anime style",
        "Ein Bild von S*, müde",
        "-n",
        2,
        "--seed",
        5,
        "--steps",
        1,
        "-o",
        tmp_path / "out",
        "--sheet",
        tmp_path / "sheet.png",
        "--negative-prompt",
        "blurry, grey",
    )
    names = [
        "01-s-in-anime-style-5.png",
        "01-s-in-anime-style-6.png",
        "02-ein-bild-von-s-m-de-5.png",
        "02-ein-bild-von-s-m-de-6.png",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert result.stdout.splitlines() == [str(tmp_path / "out" / name) for name in names] + [
        str(tmp_path / "sheet.png")
    ]
    parameters, record = read_record((tmp_path / "out" / names[1]).read_bytes(), names[1])
    assert parameters.splitlines()[0] == "S* in anime style"
    assert "Negative prompt: blurry, grey" in parameters
    assert "Seed: 6" in parameters
    assert record["seed"] == 6
    assert record["text"] == "a person in anime style"
    bundle = read_bundle(subject.read_bytes(), "me.pfz")
    assert record["subjects"][0]["sha256"] == bundle.sha256
    assert record["subjects"][0]["inputs"] == bundle.manifest["inputs"]
    assert record["subjects"][0]["inputs"][0]["name"] == photo.name
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width > 2 * 256
    assert sheet.height > 3 * 256
    parameters_of_sheet, told = read_record((tmp_path / "sheet.png").read_bytes(), "sheet.png")
    assert parameters_of_sheet == parameters.replace("Seed: 6", "Seed: 5")
    assert {**told, "seed": 6} == {**record, "pictures": told["pictures"]}
    assert [(one["prompt"], one["seed"]) for one in told["pictures"]] == [
        (prompt, seed) for prompt in ("S* in anime style", "Ein Bild von S*, müde") for seed in (5, 6)
    ]


def test_json_lists_the_pictures(subject, tmp_path):
    result = ok("sample", subject, "S* at sea", "--steps", 1, "-n", 2, "-o", tmp_path, "--json")
    listed = json.loads(result.stdout)
    assert [entry["seed"] for entry in listed["pictures"]] == [0, 1]
    assert all(Image.open(entry["path"]).size == (128, 128) for entry in listed["pictures"])


def test_standard_output_is_the_picture(subject, tmp_path):
    result = ok("sample", subject, "S* at sea", "--steps", 1, "-o", "-")
    ok("sample", subject, "S* at sea", "--steps", 1, "-o", tmp_path / "x.png")
    assert result.stdout_bytes == (tmp_path / "x.png").read_bytes()
    piped = ok("sample", "-", "S* at sea", "--steps", 1, "-o", "-", input=subject.read_bytes())
    assert Image.open(io.BytesIO(piped.stdout_bytes)).tobytes() == Image.open(tmp_path / "x.png").tobytes()


def test_what_was_drawn_before_an_interrupt_is_kept(subject, tmp_path, monkeypatch):
    original, count = BaseModel.decode, []

    def interrupted(self, latents):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return original(self, latents)

    monkeypatch.setattr(BaseModel, "decode", interrupted)
    result = run("sample", subject, "S* at sea", "-n", 3, "--batch-size", 1, "--steps", 1, "-o", tmp_path)
    assert result.exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["01-s-at-sea-0.png"]


def test_v_prediction(base_folder, photo, tmp_path):
    """The same networks read as v-prediction draw something else, and both train."""
    from profusion_cli.runtime.random_base import build_random_base

    folder = tmp_path / "v"
    build_random_base(folder, prediction_type="v_prediction")
    pictures = []
    for base in (base_folder, folder):
        bundle = tmp_path / f"{base.name}.pfz"
        ok(
            "finetune",
            photo,
            "--no-augment",
            "--preset",
            "tiny-random",
            "--base-model",
            base,
            "--steps",
            1,
            "-o",
            bundle,
        )
        pictures.append(drawn(tmp_path, bundle, "S* at sea"))
    assert abs(pictures[0] - pictures[1]).max() > 20


def test_a_size_beyond_the_bases_own_is_told(subject, tmp_path):
    """128 pixels is the tiny model's own."""
    for size, told in ((("--width", 192), True), (("--height", 256), True), (("--width", 64), False), ((), False)):
        result = ok("sample", subject, "S*", *size, "--steps", 1, "-o", tmp_path / "x.png", "--force")
        assert ("beyond its own size" in " ".join(result.stderr.split())) == told, size
