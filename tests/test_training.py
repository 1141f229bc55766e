"""`finetune`: the objective, what is trained, what is computed once, and what is saved."""

from __future__ import annotations

import gc
import json
import math
import os
import weakref

import pytest
import safetensors.torch
import torch

from profusion_cli.bundle import read_bundle
from profusion_cli.config import BaseConfig, FinetuneConfig
from profusion_cli.errors import DivergedError
from profusion_cli.runtime import fitting, training
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import Placement, resolve_placement, step_generator
from profusion_cli.runtime.fitting import make_accelerator
from profusion_cli.runtime.loss import diffusion_target
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.training import draw_batch, finetune, select_trainable
from profusion_cli.runtime.views import Views
from tests.conftest import draw_photo, like_float16, ok, run


def make_base(folder) -> BaseModel:
    return BaseModel(BaseConfig(str(folder), resolution=128), resolve_placement("cpu", "auto", True))


def make_promptnet(base: BaseModel) -> PromptNet:
    return PromptNet.from_unet(base.unet, 32, 32, region_kernel_size=2, region_proj_channels=16)


def make_views(count: int = 2) -> Views:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn((count, 4, 16, 16), generator=generator)
    return Views(mean, torch.full_like(mean, 0.1), torch.randn((count, 257, 32), generator=generator))


def tune(base, **settings):
    promptnet = make_promptnet(base)
    before = {name: value.clone() for name, value in promptnet.state_dict().items()}
    config = FinetuneConfig(**{"steps": 2, "batch_size": 4, "learning_rate": 1e-3, **settings})
    tuned = finetune(base, promptnet, make_views(), config, "a photo of S*", 0, lambda done, loss: None)
    changes = {name: value - before[name] for name, value in promptnet.state_dict().items()}
    return tuned, changes


def bundle_of(path):
    return read_bundle(path.read_bytes(), path.name)


def tensors(path, name) -> dict[str, torch.Tensor]:
    return safetensors.torch.load(bytes(bundle_of(path).read(name)))


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("promptnet", lambda path: False),
        ("qkv", lambda path: path[-2] in ("to_q", "to_k", "to_v")),
        ("attention", lambda path: "attn1" in path or "attn2" in path),
    ],
)
def test_what_is_trained(base_folder, train, expected):
    """PromptNet always; of the UNet exactly the named layers, and nothing else moves."""
    base = make_base(base_folder)
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    tuned, changes = tune(base, train=train)
    assert set(tuned.unet_changes) == {name for name in before if expected(name.split("."))}
    for name, value in base.unet.state_dict().items():
        moved = not value.equal(before[name])
        assert moved == (name in tuned.unet_changes), name
        if moved:
            torch.testing.assert_close(before[name] + tuned.unet_changes[name], value)
    still = [name for name, change in changes.items() if change.abs().max() == 0]
    assert not still
    assert len(tuned.losses) == 2


def test_training_lowers_the_loss(base_folder):
    """On one fixed batch; a step of wrong sign would raise it."""
    base = make_base(base_folder)
    tuned, _ = tune(base, steps=12, batch_size=8, learning_rate=2e-3)
    assert sum(tuned.losses[-4:]) < sum(tuned.losses[:4])


def test_gradient_accumulation_changes_memory_only(base_folder):
    results = [tune(make_base(base_folder), gradient_accumulation=parts) for parts in (1, 2, 3, 4)]
    for tuned, changes in results[1:]:
        assert tuned.losses == pytest.approx(results[0][0].losses, rel=1e-5)
        # Adam's first steps are nearly sign(gradient): where a gradient is nearly 0, noise decides
        for name, change in changes.items():
            assert (change - results[0][1][name]).abs().mean() < 2e-5, name


def test_gradient_checkpointing_changes_memory_only(base_folder):
    plain, _ = tune(make_base(base_folder))
    checkpointed, _ = tune(make_base(base_folder), gradient_checkpointing=True)
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-6)


def test_checkpointing_is_really_on(base_folder, monkeypatch):
    calls = []
    original = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    tune(make_base(base_folder), steps=1)
    assert not calls
    tune(make_base(base_folder), steps=1, gradient_checkpointing=True)
    assert len(calls) > 10


def test_every_step_draws_its_own_and_reference_and_target_are_independent():
    views = make_views(32)
    first = draw_batch(views, 256, step_generator(0, 0), 0.18215, 1000)
    again = draw_batch(views, 256, step_generator(0, 0), 0.18215, 1000)
    later = draw_batch(views, 256, step_generator(0, 1), 0.18215, 1000)
    other = draw_batch(views, 256, step_generator(1, 0), 0.18215, 1000)
    assert first.noise.equal(again.noise)
    assert not first.noise.equal(later.noise)
    assert not first.noise.equal(other.noise)

    def view_of(latents):
        distances = ((latents[:, None] / 0.18215 - views.latents_mean[None]) ** 2).mean(dim=(2, 3, 4))
        assert (distances.min(1).values < 0.02).all()  # the posterior's own noise, std 0.1
        return distances.argmin(1)

    reference, target = view_of(first.ref_latents), view_of(first.target_latents)
    assert first.image_tokens.equal(views.image_tokens[reference])
    assert len(reference.unique()) > 28
    assert (reference == target).float().mean() < 0.15  # 1/32 expected
    same = reference == target
    assert same.any() and not first.ref_latents[same].equal(first.target_latents[same])
    assert first.timesteps.min() >= 0
    assert first.timesteps.max() < 1000
    assert len(first.timesteps.unique()) > 150


def test_targets():
    x, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t, alphas = torch.tensor([0, 500]), torch.linspace(0.99, 0.01, 1000)
    assert diffusion_target(x, noise, t, alphas, "epsilon") is noise
    v = diffusion_target(x, noise, t, alphas, "v_prediction")
    torch.testing.assert_close(v[1], alphas[500].sqrt() * noise[1] - (1 - alphas[500]).sqrt() * x[1])
    with pytest.raises(ValueError, match="sample"):
        diffusion_target(x, noise, t, alphas, "sample")


def test_encoders_run_once_per_view(photo, tmp_path, monkeypatch):
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionModel

    log = []
    for cls, name in ((AutoencoderKL, "encode"), (CLIPVisionModel, "forward")):
        original = getattr(cls, name)

        def heard(self, *arguments, _original=original, _name=cls.__name__, **options):
            if self.device.type != "meta":  # where memory is counted, and nothing computed
                log.append(_name)
            return _original(self, *arguments, **options)

        monkeypatch.setattr(cls, name, heard)
    other = draw_photo(tmp_path / "other.png", "red")
    ok("finetune", photo, "--no-augment", other, "--preset", "tiny-random", "--steps", 3, "-o", tmp_path / "x.pfz")
    assert sorted(log) == ["AutoencoderKL"] * 2 + ["CLIPVisionModel"] * 2


def test_a_divergence_saves_nothing(base_folder, photo, tmp_path, monkeypatch):
    with pytest.raises(DivergedError, match="the loss at step"):
        tune(make_base(base_folder), learning_rate=1.0, max_grad_norm=0.0, weight_decay=0.0, steps=30)
    monkeypatch.setattr(training, "diffusion_loss", lambda prediction, target: prediction.sum() * float("nan"))
    result = run("finetune", photo, "--no-augment", "--preset", "tiny-random", "--steps", 2, "-o", tmp_path / "x.pfz")
    assert result.exit_code == 7
    assert "step 1" in result.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupt_saves_nothing(photo, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "diffusion_loss", interrupted)
    result = run("finetune", photo, "--no-augment", "--preset", "tiny-random", "--steps", 2, "-o", tmp_path / "x.pfz")
    assert result.exit_code == 130
    assert not list(tmp_path.iterdir())


# --- accelerate, which keeps things for the whole process ----------------------------------------------------


def placed(device: str, autocast: str) -> Placement:
    dtype = {"no": torch.float32, "bf16": torch.bfloat16}[autocast]
    return Placement(torch.device(device), dtype, dtype, autocast)


def test_every_training_has_its_own_device_and_precision():
    """One after another in a process, and the environment stays as it was."""
    before = dict(os.environ)
    for device, autocast in (("cpu", "no"), ("cpu", "bf16"), ("cuda:1", "no"), ("cuda:0", "bf16"), ("cpu", "no")):
        accelerator = make_accelerator(placed(device, autocast), 2)
        assert (str(accelerator.device), accelerator.mixed_precision) == (device, autocast)
        assert dict(os.environ) == before


def test_a_torch_that_was_built_without_processes_trains(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_initialized")
    assert str(make_accelerator(placed("cpu", "no"), 1).device) == "cpu"


def test_nothing_of_a_fine_tuning_lives_on(base_folder):
    """In bfloat16 accelerate wraps the objective so that it holds itself, and the UNet."""
    base = BaseModel(BaseConfig(str(base_folder), resolution=128), resolve_placement("cpu", "bfloat16", True))
    unet = weakref.ref(base.unet)
    gc.collect()
    gc.disable()
    try:
        tune(base, steps=1)
        base.release("unet")
        assert unet() is None
    finally:
        gc.enable()


def test_a_step_that_overflows_is_done_again(base_folder, monkeypatch):
    """With the smaller scale, on the same pictures and the same noise; the scaler alone would leave it out."""
    plain, changes = tune(make_base(base_folder), steps=3, gradient_accumulation=2)
    like_float16(monkeypatch, training)
    again, changes_again = tune(make_base(base_folder), steps=3, gradient_accumulation=2)
    assert (plain.repeated, again.repeated) == (0, 1)
    assert again.losses == pytest.approx(plain.losses, rel=1e-4)
    for name, change in changes.items():
        assert (change - changes_again[name]).abs().mean() < 1e-4, name


def test_gradients_that_overflow_at_every_scale_are_a_divergence(base_folder, monkeypatch):
    like_float16(monkeypatch, training, math.inf)
    monkeypatch.setattr(fitting, "SMALLEST_SCALE", 20000.0)
    with pytest.raises(DivergedError, match="step 1 overflow"):
        tune(make_base(base_folder), steps=2)


# --- the bundle ----------------------------------------------------------------------------------------------


def test_the_bundle_holds_what_changed_and_the_views(subject, photo):
    bundle = bundle_of(subject)
    manifest = bundle.manifest
    assert manifest["kind"] == "subject"
    assert manifest["config"]["finetune"]["steps"] == 2
    assert manifest["inputs"][0]["name"] == photo.name
    assert set(manifest["base"]["fingerprint"]) == {"unet", "vae", "text_encoder", "vision"}
    changes = tensors(subject, "unet.safetensors")
    assert all("attn" in name and value.dtype == torch.float16 for name, value in changes.items())
    assert max(value.abs().max() for value in changes.values()) <= 2.1e-3  # two steps at 1e-3: these are differences
    views = tensors(subject, "views.safetensors")
    assert views["latents_mean"].shape == (1, 4, 16, 16)
    assert views["image_tokens"].shape == (1, 257, 32)
    assert tensors(subject, "promptnet.safetensors")["conv_in.weight"].dtype == torch.float16
    assert bundle.preview.startswith(b"\x89PNG")


def test_the_same_command_makes_the_same_bundle(photo, tmp_path):
    for name in ("a.pfz", "b.pfz"):
        ok("finetune", photo, "--no-augment", "--preset", "tiny-random", "--steps", 1, "-o", tmp_path / name)
    assert (tmp_path / "a.pfz").read_bytes() == (tmp_path / "b.pfz").read_bytes()
    ok(
        "finetune",
        photo,
        "--no-augment",
        "--preset",
        "tiny-random",
        "--steps",
        1,
        "--seed",
        1,
        "-o",
        tmp_path / "c.pfz",
    )
    assert (tmp_path / "a.pfz").read_bytes() != (tmp_path / "c.pfz").read_bytes()


def test_tuning_free(photo, tmp_path):
    """`--steps 0`: no UNet changes, and PromptNet as it came."""
    target = tmp_path / "free.pfz"
    ok(
        "finetune",
        photo,
        "--no-augment",
        "--preset",
        "tiny-random",
        "--steps",
        0,
        "--save-dtype",
        "float32",
        "-o",
        target,
    )
    assert "unet.safetensors" not in bundle_of(target).manifest["files"]
    from profusion_cli.presets import resolve_config

    config = resolve_config("tiny-random", None, {})
    with BaseModel(config.base, resolve_placement("cpu", "auto", False)) as base:
        fresh = PromptNet.from_unet(base.unet, 32, 32, region_kernel_size=2, region_proj_channels=16)
    saved = tensors(target, "promptnet.safetensors")
    assert all(value.equal(saved[name]) for name, value in fresh.state_dict().items())
    ok("sample", target, "S*", "--steps", 1, "-o", tmp_path / "x.png")


def test_several_photos_are_several_views(photo, tmp_path):
    other, target = draw_photo(tmp_path / "other.png", "red"), tmp_path / "two.pfz"
    ok("finetune", photo, "--no-augment", other, "--preset", "tiny-random", "--steps", 1, "-o", target)
    assert tensors(target, "views.safetensors")["latents_mean"].shape[0] == 2
    assert [entry["name"] for entry in bundle_of(target).manifest["inputs"]] == ["face.png", "other.png"]
    for reference, code in ((1, 0), (2, 0), (3, 4)):
        result = run(
            "sample",
            target,
            "S*",
            "--steps",
            1,
            "--set",
            f"sample.reference={reference}",
            "-o",
            tmp_path / f"{reference}.png",
        )
        assert result.exit_code == code, result.stderr
    assert (tmp_path / "1.png").read_bytes() != (tmp_path / "2.png").read_bytes()


def digests(photo, target, *options) -> dict[str, str]:
    """The hashes of the files of a subject that is tuned with these options."""
    ok(
        "finetune",
        photo,
        "--no-augment",
        "--preset",
        "tiny-random",
        "--steps",
        2,
        "--lr",
        "1e-2",
        *options,
        "-o",
        target,
    )
    return {file: entry["sha256"] for file, entry in bundle_of(target).manifest["files"].items()}


@pytest.fixture(scope="module")
def plain_digests(photo, tmp_path_factory) -> dict[str, str]:
    return digests(photo, tmp_path_factory.mktemp("plain") / "plain.pfz")


@pytest.mark.parametrize(
    "options",
    [
        ["--batch-size", 4],
        ["--lr", "1e-3"],
        ["--train", "promptnet"],
        ["--train", "qkv"],
        ["--save-dtype", "bfloat16"],
        ["--set", "finetune.draws=stratified"],
        ["--set", "finetune.weight_decay=0.5"],
        ["--set", "finetune.max_grad_norm=0.001"],
        ["--set", "concept_prompt=a painting of S*"],
        ["--set", "promptnet.region_kernel_size=1"],
        ["--set", "base.random.seed=1"],
        ["--set", "base.vision_antialias=true"],
        ["--set", "base.clip_skip=1"],
    ],
)
def test_every_option_does_something(photo, tmp_path, options, plain_digests):
    """Other options give other tensors; the manifest, which repeats the options, is not looked at."""
    assert digests(photo, tmp_path / "changed.pfz", *options) != plain_digests


def test_half_precision_on_a_cpu(photo, tmp_path):
    """bfloat16 runs through autocast, and is no float32 by another name."""
    common = ("finetune", photo, "--no-augment", "--preset", "tiny-random")
    losses = [
        json.loads(ok(*common, "--steps", 2, "--dtype", dtype, "--json", "-o", tmp_path / f"{dtype}.pfz").stdout)
        for dtype in ("bfloat16", "float32")
    ]
    half_loss, full_loss = (entry["first_loss"] for entry in losses)
    assert half_loss == pytest.approx(full_loss, rel=0.02)
    assert half_loss != full_loss
    ok("sample", tmp_path / "bfloat16.pfz", "S*", "--steps", 1, "--dtype", "bfloat16", "-o", tmp_path / "x.png")
    result = run(*common, "--dtype", "float16", "--device", "cpu", "-o", tmp_path / "y")
    assert result.exit_code == 6
    assert "float16" in result.stderr


def test_promptnet_from_unet_is_seeded_and_leaves_the_generator_alone(base_folder):
    unet = make_base(base_folder).unet
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = PromptNet.from_unet(unet, 32, 32, 2, 16, seed=1)
    assert torch.rand(3).equal(expected)
    two = PromptNet.from_unet(unet, 32, 32, 2, 16, seed=1)
    three = PromptNet.from_unet(unet, 32, 32, 2, 16, seed=2)
    assert all(value.equal(two.state_dict()[name]) for name, value in one.state_dict().items())
    assert not one.region_prompt_output.weight.equal(three.region_prompt_output.weight)
    assert set(one.copied) & set(one.new) == set()
    assert set(one.copied) | set(one.new) == set(one.state_dict())


@pytest.mark.parametrize(("kernel", "words"), [(1, 4), (2, 1)])
def test_as_many_words_as_the_pyramid_gives(base_folder, kernel, words):
    base = make_base(base_folder)
    promptnet = PromptNet.from_unet(base.unet, 32, 32, kernel, 16)
    latents = torch.randn(3, 4, 16, 16)
    out = promptnet(latents, latents, torch.tensor([1, 2, 3]), torch.randn(3, 257, 32))
    assert out.shape == (3, words, 32)
    assert promptnet.tokens_for(16) == words


def test_s_star_depends_on_all_that_it_should(base_folder):
    promptnet = make_promptnet(make_base(base_folder)).eval()
    generator = torch.Generator().manual_seed(0)
    ref, x_t = (torch.randn((1, 4, 16, 16), generator=generator) for _ in range(2))
    image = torch.randn((1, 257, 32), generator=generator)
    with torch.no_grad():
        plain = promptnet(ref, x_t, 500, image)
        for other in ((-ref, x_t, 500, image), (ref, -x_t, 500, image), (ref, x_t, 20, image), (ref, x_t, 500, -image)):
            assert (promptnet(*other) - plain).abs().max() > 1e-5
        bigger = torch.nn.functional.interpolate(x_t, scale_factor=2, mode="nearest")
        torch.testing.assert_close(promptnet(ref, bigger, 500, image), plain)


def test_other_unets_of_the_family():
    """A Stable Diffusion 1 UNet (convolutional projections, eight heads everywhere, 768 wide) and a deeper one."""
    from diffusers import UNet2DConditionModel

    from profusion_cli.errors import ConfigError

    old = UNet2DConditionModel(
        block_out_channels=(16, 16, 32, 32), norm_num_groups=8, cross_attention_dim=24, attention_head_dim=8
    )
    promptnet = PromptNet.from_unet(old, 40, 24, 8, 8)
    latents = torch.randn(1, 4, 64, 64)
    assert promptnet(latents, latents, 5, torch.randn(1, 7, 40)).shape == (1, 1, 24)
    small = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=24,
    )
    promptnet = PromptNet.from_unet(small, 40, 24, 2, 8)
    latents = torch.randn(1, 4, 16, 16)
    assert promptnet(latents, latents, 5, torch.randn(1, 7, 40)).shape == (1, promptnet.tokens_for(16), 24)
    conditioned = UNet2DConditionModel(
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=24,
        num_class_embeds=3,
    )
    with pytest.raises(ConfigError, match="num_class_embeds"):
        PromptNet.from_unet(conditioned, 40, 24, 2, 8)


def test_select_trainable_restores_what_an_earlier_choice_marked(base_folder):
    base = make_base(base_folder)
    promptnet = make_promptnet(base)
    for train in ("attention", "promptnet"):
        select_trainable(promptnet, base.unet, FinetuneConfig(train=train), 0)
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())
