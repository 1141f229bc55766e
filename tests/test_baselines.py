"""Textual inversion, DreamBooth and E4T as methods of `finetune`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from profusion_cli.bundle import read_bundle
from profusion_cli.config import BaseConfig, FinetuneConfig, InpaintModel, RandomConfig
from profusion_cli.images import crop_square
from profusion_cli.methods import METHODS, class_noun
from profusion_cli.presets import resolve_config
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.baselines import LearnedWord, draw_word_batch, finetune_word
from profusion_cli.runtime.denoiser import PromptDenoiser, WordSubject, tokenize_prompt
from profusion_cli.runtime.device import Placement, resolve_placement, step_generator
from profusion_cli.runtime.fusion import Condition
from profusion_cli.runtime.inpaint import InpaintingModel
from profusion_cli.runtime.loss import diffusion_loss, prior_preservation_loss
from profusion_cli.runtime.pipelines import TextToImage
from profusion_cli.runtime.views import Views
from profusion_cli.runtime.weights import promptnet_from_bundle, read_views
from tests.conftest import ok, run, write_bundle


@pytest.fixture
def base(base_folder) -> BaseModel:
    return BaseModel(BaseConfig(str(base_folder), resolution=128), resolve_placement("cpu", "auto", True))


def some_views(seed: int, count: int = 2) -> Views:
    mean = torch.randn((count, 4, 16, 16), generator=torch.Generator().manual_seed(seed))
    return Views(mean, torch.full_like(mean, 0.1), torch.zeros(count, 0, 0))


def tune(base: BaseModel, method: str, prior: Views | None = None, **settings) -> tuple[LearnedWord, dict]:
    own = {**METHODS[method]["finetune"], "method": method, "steps": 3, "batch_size": 2, "learning_rate": 1e-2}
    own["prompts"] = tuple(own.get("prompts", ()))
    config = FinetuneConfig(**{**own, **settings})
    word = LearnedWord.from_text(base.text, config.word.replace("{class}", "person"))
    tuned = finetune_word(
        base, word, some_views(0), prior, config, "a photo of S*", "a person", 0, lambda done, loss: None
    )
    return word, tuned.unet_changes


def test_ordinary_words_are_conditioned_on_as_their_text_is(base):
    """DreamBooth's S* before training is nothing but its words in the prompt."""
    words = LearnedWord.from_text(base.text, "a sks person").embedding
    prompt = parse_prompt("S* beside S*, in anime style")
    tokens = base.text.tokenize(prompt.pieces, len(words))
    embeds, _ = base.text.splice(tokens, {0: words[None]}, shift_positions=True, ordinary=(0,))
    written = "a sks person beside a sks person, in anime style"
    torch.testing.assert_close(base.text.hidden_states(embeds)[:, :77], base.text.encode(written))
    # and so it is where pictures are drawn
    subject = WordSubject(words.detach(), "a person")
    forms = tokenize_prompt(prompt, base.text, ["a person"], [subject.words])
    denoiser = PromptDenoiser(base.unet, base.text, [subject], forms, torch.ones(1), "epsilon")
    state = denoiser.encode(Condition("subject", 0), {0: words.detach()[None]})
    torch.testing.assert_close(state[:, :77], base.text.encode(written))


def test_the_prior_adds_its_mean_error_to_the_subjects():
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(6, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    everywhere_other = torch.arange(6) % 2 == 1
    both = prior_preservation_loss(prediction, target, everywhere_other, 3.0)
    own, prior = (diffusion_loss(prediction[which], target[which]) for which in (~everywhere_other, everywhere_other))
    torch.testing.assert_close(both, own + 3.0 * prior)
    for parts in (2, 3, 6):  # of gradient accumulation
        split = [tensor.tensor_split(parts) for tensor in (prediction, target, everywhere_other)]
        each = [prior_preservation_loss(*part, 3.0) for part in zip(*split, strict=True)]
        torch.testing.assert_close(sum(each) / parts, both)


def test_pictures_of_the_class_stand_between_those_of_the_subject():
    views, prior = some_views(0), some_views(1, 5)
    alone = draw_word_batch(views, None, 3, 4, step_generator(0, 0), 1.0, 1000)
    assert len(alone) == 3 and not alone.is_prior.any()
    batch = draw_word_batch(views, prior, 3, 4, step_generator(0, 0), 1.0, 1000)
    assert batch.is_prior.tolist() == [False, True] * 3
    assert len(set(batch.prompts.tolist())) == 1

    def belongs(latents: torch.Tensor, to: Views) -> bool:
        return bool(((to.latents_mean - latents).abs().amax((1, 2, 3)) < 1).any())

    assert all(
        belongs(latents, prior if kind else views)
        for latents, kind in zip(batch.target_latents, batch.is_prior, strict=True)
    )


def test_textual_inversion_trains_the_word_alone(base):
    word, changes = tune(base, "textual-inversion")
    assert changes == {}
    assert word.embedding.shape == (1, base.text.embedding_dim)
    assert (word.embedding - word.initial).abs().max() > 1e-3
    pulled, _ = tune(base, "textual-inversion", embedding_l2=1e6, steps=30, learning_rate=1e-3)
    free, _ = tune(base, "textual-inversion", steps=30, learning_rate=1e-3)
    assert (pulled.embedding - pulled.initial).norm() < 0.5 * (free.embedding - free.initial).norm()


def test_dreambooth_trains_the_whole_unet_and_leaves_the_word(base):
    word, changes = tune(base, "dreambooth", some_views(1), learning_rate=1e-3)
    assert set(changes) == {name for name, _ in base.unet.named_parameters()}
    assert changes["conv_in.weight"].abs().max() > 0
    torch.testing.assert_close(word.embedding.detach(), word.initial)


def test_gamma_on_the_embedding_is_divided_out_unless_the_word_is_as_long_as_what_layers_add():
    """By the layer norms of a trained text encoder, the face world's; on its output, gamma acts on any word."""
    base = BaseModel(resolve_config("faceworld", None, {}).base, resolve_placement("cpu", "float32", False))
    tokens = tokenize_prompt(parse_prompt("S* on a beach"), base.text, ["a person"], [1])
    ((row, _),) = tokens.fused[0].slots
    word = torch.randn(1, 1, base.text.embedding_dim, generator=torch.Generator().manual_seed(0))
    word /= base.text.relative_length(word)
    assert base.text.relative_length(3000 * word) == pytest.approx(3000, rel=1e-4)

    def effect(way: str, length: float) -> float:
        denoiser = PromptDenoiser(None, base.text, [], tokens, torch.ones(1), "epsilon", way)
        one, other = (denoiser.encode(Condition("fused", 0, gamma), {0: length * word})[0, row] for gamma in (1.0, 0.6))
        return float((one - other).norm() / one.norm())

    with torch.no_grad():
        assert max(effect("embedding", length) for length in (1, 3000)) < 0.03 < 0.2 < effect("embedding", 100)
        assert all(effect("hidden", length) == pytest.approx(0.4, rel=1e-3) for length in (1, 100, 3000))


def test_inspect_tells_how_long_the_word_is(base_folder, subject, photo, tmp_path):
    word = tmp_path / "word.pfz"
    method = ["--method", "dreambooth", "--steps", 0, "--no-augment"]
    ok("finetune", photo, "--preset", "tiny-random", *method, "-o", word)
    told = {}
    for path in (word, subject):
        entry = yaml.safe_load(ok("inspect", path, "--full").stdout)
        told[path] = entry["manifest"]["s_star"]["length_in_ordinary_words"]
    assert 0.3 < told[word] < 3  # an ordinary word
    opened = read_bundle(subject.read_bytes(), "me.pfz")
    base = BaseModel(BaseConfig(str(base_folder), resolution=128), resolve_placement("cpu", "auto", False))
    promptnet = promptnet_from_bundle(opened)
    views = read_views(opened, promptnet)
    with torch.no_grad():
        words = promptnet(
            views.latents_mean[:1], torch.randn(views.latents_mean[:1].shape), 500, views.image_tokens[:1]
        )
    assert told[subject] == pytest.approx(base.text.relative_length(words), rel=0.5)

    older = {key: value for key, value in opened.manifest.items() if key not in ("s_star", "schema_version", "tool")}
    files = {name: opened.read(name) for name in opened.files if name.endswith(".safetensors")}
    write_bundle(tmp_path / "older.pfz", older, files)
    assert "s_star" not in ok("inspect", tmp_path / "older.pfz", "--full").stdout
    assert "S*" not in ok("inspect", tmp_path / "older.pfz").stdout


def test_methods_set_what_their_papers_say_and_flags_win():
    config = resolve_config("sd2", None, {"finetune.method": "dreambooth"})
    assert (config.finetune.steps, config.finetune.learning_rate, config.finetune.train) == (800, 5e-6, "unet")
    assert config.sample.sampler == "cfg"
    assert resolve_config("sd2", None, {"finetune.steps": 7}, ["finetune.method=dreambooth"]).finetune.steps == 7
    again = resolve_config(None, config.as_dict(), {"sample.steps": 3})
    assert again.finetune == config.finetune
    images = resolve_config("sd2", None, {}).as_dict()
    assert resolve_config(None, images, {"finetune.method": "textual-inversion"}).finetune.steps == 6100
    assert resolve_config("sd2", None, {}).finetune.method == "profusion"


def test_a_preset_has_its_own_settings_for_methods(tmp_path):
    preset = tmp_path / "own.yaml"
    values = {"base": {"id": "somewhere"}, "finetune": {"steps": 9}}
    preset.write_text(yaml.safe_dump({**values, "methods": {"dreambooth": {"finetune": {"steps": 5}}}}))
    assert resolve_config(str(preset), None, {}).finetune.steps == 9
    own = resolve_config(str(preset), None, {"finetune.method": "dreambooth"}).finetune
    assert (own.steps, own.train) == (5, "unet")
    preset.write_text(yaml.safe_dump({**values, "methods": {"dreambot": {}}}))
    result = run("finetune", "x.png", "-o", "x.pfz", "--preset", preset, "--dry-run")
    assert result.exit_code == 3 and "dreambooth" in result.stderr


def test_the_noun_of_a_class_word():
    assert [class_noun(word) for word in ("a person", "the old man", "an owl", "cat", "a")] == [
        *("person", "old man", "owl", "cat", "a")
    ]


@pytest.mark.parametrize("method", ["textual-inversion", "dreambooth", "e4t"])
def test_a_baseline_is_a_bundle_like_any_other(method, photo, tmp_path):
    bundle, picture = tmp_path / "b.pfz", tmp_path / "p.png"
    settings = ["--set", "finetune.prior_pictures=2", "--set", "sample.steps=2", "--set", "finetune.batch_size=2"]
    common = ["--preset", "tiny-random", "--method", method, "--steps", 2, *settings]
    result = ok("finetune", photo, "-o", bundle, *common)
    assert ("--embedding-l2" in result.stderr) == (method == "e4t")
    opened = read_bundle(bundle.read_bytes(), "b.pfz")
    assert opened.manifest["config"]["finetune"]["method"] == method
    assert ("word.safetensors" in opened.files) == (method != "e4t")
    assert ("unet.safetensors" in opened.files) == (method != "textual-inversion")
    ok("sample", bundle, "S* on a beach", "-o", picture)
    assert Image.open(picture).size == (128, 128)
    ok("inspect", bundle)
    if method == "textual-inversion":
        word = safetensors.torch.load(bytes(opened.read("word.safetensors")))["embedding"]
        assert word.shape == (1, 32)
        ok("interpolate", bundle, bundle, "S* on a beach", "-o", tmp_path / "way.png", "--frames", 2)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--method", "dreambot"], 3, "dreambooth"),
        (["--method", "dreambooth", "--promptnet", "x.pfz"], 2, "ordinary word"),
        (["--method", "dreambooth", "--views", "3"], 2, "--views has no effect"),
        (["--method", "textual-inversion", "--set", "finetune.word="], 3, "finetune.word"),
    ],
)
def test_mistakes_are_told(arguments, code, said, photo, tmp_path):
    result = run("finetune", photo, "-o", tmp_path / "b.pfz", "--preset", "tiny-random", *arguments)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert not (tmp_path / "b.pfz").exists()


def test_the_base_model_alone_draws_the_same_whatever_the_batch(base_folder):
    config = resolve_config("tiny-random", None, {"sample.steps": 2}).sample
    with TextToImage(BaseConfig(str(base_folder), resolution=128), resolve_placement("cpu", "auto", False)) as model:
        one = model.draw("a person", range(3), replace(config, batch_size=1), 5.0, 0)
        three = model.draw("a person", range(3), replace(config, batch_size=3), 5.0, 0)
    assert len(one) == 3
    for a, b in zip(one, three, strict=True):
        assert max(abs(x - y) for x, y in zip(a.tobytes(), b.tobytes(), strict=True)) <= 2


def test_a_pipelines_vae_has_the_precision_of_the_placement(base_folder, photo):
    """As on a GPU in bfloat16, whose VAE is to be another; pictures are drawn, and encoded for inpainting."""
    placement = Placement(torch.device("cpu"), torch.bfloat16, torch.float32, "bf16")
    config = resolve_config("tiny-random", None, {"sample.steps": 2}).sample
    with TextToImage(BaseConfig(str(base_folder), resolution=128), placement) as model:
        (picture,) = model.draw("a person", range(1), config, 5.0, 0)
        parts = model.pipeline.components
    assert picture.size == (128, 128)
    assert {name: parts[name].dtype for name in ("unet", "text_encoder", "vae")} == {
        "unet": torch.bfloat16,
        "text_encoder": torch.bfloat16,
        "vae": torch.float32,
    }
    with InpaintingModel(InpaintModel(id=None, random=RandomConfig()), placement, 128) as model:
        square, hole = crop_square(Image.open(photo).convert("RGB"), 128), Image.new("L", (128, 128), 255)
        made = model.pipeline(
            "a person", image=square, mask_image=hole, height=128, width=128, num_inference_steps=2, output_type="np"
        ).images
        assert model.pipeline.vae.dtype == torch.float32
    assert np.isfinite(made).all()
    assert made.shape == (1, 128, 128, 3)
