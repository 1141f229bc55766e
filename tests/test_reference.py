"""Agreement with inputs and outputs recorded from the authors' own code (tiny random weights, float32)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from profusion_cli.config import BaseConfig, ComponentConfig, FinetuneConfig
from profusion_cli.images import crop_square, decode_photo
from profusion_cli.plans import exact_plan
from profusion_cli.prompts import parse_prompt
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.denoiser import PromptDenoiser, PromptNetSubject, tokenize_prompt
from profusion_cli.runtime.device import Placement
from profusion_cli.runtime.fusion import Condition, Guidance, refined_eps, sample_fusion
from profusion_cli.runtime.hub import Source
from profusion_cli.runtime.loss import diffusion_loss, embedding_l2
from profusion_cli.runtime.model import Conditioning, predict
from profusion_cli.runtime.pixels import clip_pixels, pixel_values
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.schedule import add_noise, ddim_sigma, fusion_fraction, timesteps_of
from profusion_cli.runtime.training import Batch, Trained, TrainingObjective, concept_layout, select_trainable
from profusion_cli.runtime.weights import RESIDUAL_HEADS, read_official
from tests.conftest import REFERENCE, needs_reference

pytestmark = needs_reference
CHECKPOINT = REFERENCE / "official-checkpoint"
OPENCLIP = ComponentConfig("openclip")


def recorded(name: str) -> dict[str, torch.Tensor]:
    return load_file(REFERENCE / name)


def settings(name: str) -> dict:
    return json.loads((REFERENCE / name).read_text())


def close(ours: torch.Tensor, theirs: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def base() -> BaseModel:
    config = BaseConfig(str(CHECKPOINT), text_encoder=OPENCLIP, vision=OPENCLIP, clip_skip=1)
    return BaseModel(config, Placement(torch.device("cpu"), torch.float32, torch.float32, "no"))


@pytest.fixture(scope="module")
def promptnets() -> dict[int, PromptNet]:
    return {
        1: read_official(Source(str(CHECKPOINT), None, "promptnet", ""))[0],
        4: read_official(Source(str(REFERENCE), None, "promptnet_k4", ""))[0],
    }


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return recorded("inputs.safetensors")


def subject(promptnet: PromptNet, inputs: dict[str, torch.Tensor], image: str) -> PromptNetSubject:
    return PromptNetSubject(promptnet, inputs[f"ref_latent_{image}"], inputs[f"vision_{image}"], "a person")


# --- preprocessing -------------------------------------------------------------------------------------------


def test_vae_moments_and_latents(inputs):
    """In float64: in float32 the encoder's group norms over maps of 512 x 512 put 2e-3 into its mean (torch 2.14, AVX2)
    and its convolutions 7e-5, and another CPU sums up in another order.
    """
    config = BaseConfig(str(CHECKPOINT))
    base = BaseModel(config, Placement(torch.device("cpu"), torch.float32, torch.float64, "no"))
    data = recorded("preprocess/preprocess.safetensors")
    image = decode_photo((REFERENCE / "preprocess/image_A_512.png").read_bytes(), "A").image
    mean, std = base.encode_moments([image])
    close(mean, data["vae_mean_A"], 2e-4)
    close(std, data["vae_std_A"], 2e-4)
    close((mean + std * data["vae_noise1_A"]) * base.vae_scaling_factor, inputs["ref_latent_A"], 2e-4)


def test_image_tokens_from_the_raw_picture(base, inputs):
    data = recorded("preprocess/preprocess.safetensors")
    photo = decode_photo((REFERENCE / "preprocess/image_A.png").read_bytes(), "A")
    square = crop_square(photo.image, 512)
    assert (
        square.tobytes() == decode_photo((REFERENCE / "preprocess/image_A_512.png").read_bytes(), "A").image.tobytes()
    )
    close(clip_pixels(pixel_values(square), 224, antialias=False), data["clip_pixels_noantialias_A"], 5e-5)
    strided = clip_pixels(pixel_values(square), 224, antialias=True)[:, :, ::4, ::4]
    close(strided, data["clip_pixels_antialias_A_strided4"], 5e-5)
    close(base.encode_image_tokens([square]), inputs["vision_A"], 5e-5)


# --- PromptNet -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [1, 4])
def test_promptnet_tokens(promptnets, inputs, words):
    data, promptnet = recorded("promptnet_forward.safetensors"), promptnets[words]
    image_tokens = torch.cat([inputs["vision_A"], inputs["vision_B"]])
    assert promptnet.tokens_for(64) == words
    with torch.no_grad():
        for t in [(1, 1), (500, 500), (999, 999), (7, 901)]:
            tokens = promptnet(data["ref_latents"], data["noisy_latents"], torch.tensor(t), image_tokens)
            close(tokens, data[f"tokens_k{words}_t{t[0]}_{t[1]}"], 5e-5)
        single = promptnet(data["ref_latents"][:1], data["noisy_latents"][:1], 321, image_tokens[:1])
        close(single, data[f"tokens_k{words}_scalar_t321_imgA"], 5e-5)


def test_what_is_copied_from_the_unet(base):
    data = settings("promptnet_init_from_unet.json")
    promptnet = PromptNet.from_unet(base.unet, image_token_dim=1280, embedding_dim=32, region_proj_channels=16)
    assert set(promptnet.copied) == set(data["copied_from_unet"])
    assert set(promptnet.new) == {name for name in data["freshly_initialised"] if not name.startswith(RESIDUAL_HEADS)}
    state, unet = promptnet.state_dict(), base.unet.state_dict()
    assert all(state[name].equal(unet[name]) for name in promptnet.copied)


# --- text ----------------------------------------------------------------------------------------------------


def text_cases() -> list[str]:
    if not REFERENCE.is_dir():
        return []
    cases, left_out = settings("text_injection.json")["cases"], ("p7", "p9")
    usable = [name for name, case in cases.items() if case["insert_pos"] is not None]
    return [name for name in usable if name.split("_")[2] not in left_out]


@pytest.mark.parametrize("name", text_cases())
def test_text_conditioning(base, name):
    """Two prompts are errors here and left out: in p7 'holder' falls off the end, in p9 it is part of a word."""
    case, data = settings("text_injection.json")["cases"][name], recorded("text_injection.safetensors")
    prompt = parse_prompt(case["prompt"], "holder")
    tokens = tokenize_prompt(prompt, base.text, ["a person"], [case["k"]])
    assert tokens.fused[0].slots == ((case["insert_pos"], 0),)
    denoiser = PromptDenoiser(base.unet, base.text, [], tokens, torch.ones(1), "epsilon", "hidden-first")
    pseudo_word = {0: data[f"pseudo_k{case['k']}"]}
    with torch.no_grad():
        close(denoiser.encode(Condition("fused", 0, case["gamma"]), pseudo_word), data[name], 5e-5)


def test_text_without_a_subject(base):
    about, data = settings("text_injection.json"), recorded("text_injection.safetensors")
    with torch.no_grad():
        close(base.text.encode(about["ref_prompt"]), data["ref"], 5e-5)
        close(base.text.encode(""), data["uncond_empty"], 5e-5)
        close(base.text.encode(about["negative_prompt"]), data["uncond_negative_prompt"], 5e-5)


def test_the_ways_of_gamma_differ(base):
    """`hidden` scales all four words, `hidden-first` the first, `embedding` the input: at 0.6 all three differ."""
    data = recorded("text_injection.safetensors")
    tokens = tokenize_prompt(parse_prompt("a photo of S*"), base.text, ["a person"], [4])
    results = {}
    with torch.no_grad():
        for way in ("embedding", "hidden", "hidden-first"):
            denoiser = PromptDenoiser(base.unet, base.text, [], tokens, torch.ones(1), "epsilon", way)
            results[way] = denoiser.encode(Condition("fused", 0, 0.6), {0: data["pseudo_k4"]})
            whole = denoiser.encode(Condition("fused", 0, 1.0), {0: data["pseudo_k4"]})
            close(whole, data["cond_k4_p0_g1.0"], 5e-5)
    changed = {way: (result - whole).abs().amax(dim=(0, 2)) > 1e-6 for way, result in results.items()}
    assert changed["hidden"].nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert changed["hidden-first"].nonzero().flatten().tolist() == [4]
    assert changed["embedding"].nonzero().flatten()[:5].tolist() == [4, 5, 6, 7, 8]


# --- Fusion Sampling -----------------------------------------------------------------------------------------


def guidance_of(arguments: dict) -> Guidance:
    scales = (arguments["guidance_scale"], *arguments.get("extra_ref_image_scales", []))
    text = arguments["guidance_scale_ref"] if arguments["ref_prompt"] is not None else 0.0
    return Guidance(scales, text, arguments["refine_guidance_scale"], arguments["refine_emb_scale"])


def denoiser_of(base, promptnets, inputs, case: dict) -> PromptDenoiser:
    arguments = case["settings"]
    images = "AB" if "extra_ref_image_scales" in arguments else "A"
    subjects = [subject(promptnets[case["k"]], inputs, image) for image in images]
    prompt = parse_prompt(arguments["prompt"], "holder", len(subjects))
    tokens = tokenize_prompt(
        prompt,
        base.text,
        ["a person"] * len(subjects),
        [one.words for one in subjects],
        negative_prompt=arguments.get("negative_prompt", ""),
    )
    assert arguments["ref_prompt"] in (None, tokens.twin)
    alphas_cumprod = base.scheduler.alphas_cumprod
    return PromptDenoiser(base.unet, base.text, subjects, tokens, alphas_cumprod, "epsilon", "hidden-first")


@pytest.mark.parametrize("name", ["m1_t601", "m1_two_images_t601", "m1_last_t1"])
def test_one_fusion_step(base, promptnets, inputs, name):
    case, data = settings("fusion_step/settings.json")[name], recorded(f"fusion_step/{name}.safetensors")
    start, guidance = recorded("fusion_step/m1_t601.safetensors"), guidance_of(case["settings"])
    denoiser = denoiser_of(base, promptnets, inputs, case)
    seen: list[torch.Tensor] = []

    def eps(x_t, t, conditions):
        seen.append(x_t)
        return denoiser(x_t, t, conditions)

    with torch.no_grad():
        x_prev = sample_fusion(
            eps,
            start["x_t"],
            [case["t"]],
            base.scheduler.alphas_cumprod,
            guidance,
            lambda i, j: start["noise"],
            final_alpha_cumprod=case["alpha_bar_prev"],
            fusion_eta=case["settings"]["refine_eta"],
        )
        close(seen[1], data["x_t_updated"], 2e-4)
        close(refined_eps(denoiser, seen[1], case["t"], guidance), data["noise_pred"], 2e-4)
    close(x_prev, data["x_prev"], 2e-4)


def test_plain_guidance_trajectory(base, promptnets, inputs):
    case, data = settings("trajectories/settings.json")["cfg"], recorded("trajectories/cfg.safetensors")
    assert timesteps_of(base.scheduler, 10) == case["timesteps"]
    with torch.no_grad():
        final = sample_fusion(
            denoiser_of(base, promptnets, inputs, case),
            recorded("trajectories/shared.safetensors")["initial_latents"],
            case["timesteps"],
            base.scheduler.alphas_cumprod,
            guidance_of(case["settings"]),
            lambda i, j: pytest.fail("plain guidance asked for noise"),
            final_alpha_cumprod=float(base.scheduler.final_alpha_cumprod),
            plan=exact_plan(10, fusion_steps=0),
        )
    assert (final - data["final"]).norm() / data["final"].norm() < 1e-4


def test_coefficients(base):
    """u and sigma along whole schedules, and the schedule itself, also from a PNDM configuration."""
    data, alphas_cumprod = settings("coefficients.json"), base.scheduler.alphas_cumprod
    for steps in (10, 50, 100):
        assert timesteps_of(base.scheduler, steps) == [entry["t"] for entry in data[str(steps)]]
        for entry in data[str(steps)]:
            a_t, a_s = entry["alpha_bar_t"], entry["alpha_bar_prev"]
            assert float(alphas_cumprod[entry["t"]]) == pytest.approx(a_t, rel=1e-6)
            u = fusion_fraction(a_t, a_s, 1.0)
            assert u * (1 - a_t) ** 0.5 == pytest.approx(entry["coef_eps"], rel=2e-4)
            assert ((1 - a_t) * u * (2 - u)) ** 0.5 == pytest.approx(entry["coef_noise"], rel=2e-4)
            assert ddim_sigma(a_t, a_s, 1.0) ** 2 == pytest.approx(entry["variance"], rel=2e-4)
    from diffusers import DDIMScheduler

    pndm = DDIMScheduler.from_config(DDIMScheduler.load_config(str(REFERENCE / "scheduler_pndm_variant")))
    pndm.set_timesteps(10)
    assert pndm.timesteps.tolist() == timesteps_of(base.scheduler, 10)
    assert pndm.alphas_cumprod.equal(alphas_cumprod)
    assert float(pndm.final_alpha_cumprod) == float(base.scheduler.final_alpha_cumprod)


# --- training ------------------------------------------------------------------------------------------------


def recorded_batch(inputs, permutation=(0, 1)) -> Batch:
    """References may be permuted against the targets, as in fine-tuning."""
    data, images = recorded("training/inputs.safetensors"), ["AB"[i] for i in permutation]
    return Batch(
        ref_latents=torch.cat([inputs[f"ref_latent_{image}"] for image in images]),
        image_tokens=torch.cat([inputs[f"vision_{image}"] for image in images]),
        target_latents=torch.cat([inputs[f"target_latent_{image}"] for image in "AB"]),
        noise=data["noise"],
        timesteps=data["timesteps"],
    )


def test_one_training_step(base, inputs):
    promptnet, _, _ = read_official(Source(str(CHECKPOINT), None, "promptnet", ""))
    data, about = recorded("training/train_noreg.safetensors"), settings("training/summary.json")["train_noreg"]
    layout = concept_layout(base.text, "A photo of S*", promptnet.tokens_for(64))
    batch, alphas_cumprod = recorded_batch(inputs), base.scheduler.alphas_cumprod
    noisy = add_noise(batch.target_latents, batch.noise, batch.timesteps, alphas_cumprod)
    close(noisy, data["noisy_latents"], 1e-6)
    with torch.no_grad():
        words = promptnet(batch.ref_latents, noisy, batch.timesteps, batch.image_tokens)
        close(words, data["pseudo_tokens"], 5e-5)
        states = base.text.hidden_states(layout.filled({0: words}))
        close(states, data["encoder_hidden_states"], 5e-5)
        prediction = predict(base.unet, noisy, batch.timesteps, Conditioning(states))
        close(prediction, data["model_pred"], 2e-4)
        assert diffusion_loss(prediction, batch.noise).item() == pytest.approx(about["loss"], rel=1e-5)

    assert select_trainable(promptnet, base.unet, FinetuneConfig(train="promptnet"), 0) == Trained({})
    objective = TrainingObjective(promptnet, base.unet, base.text, layout, alphas_cumprod, "epsilon")
    loss = objective(batch)
    loss.backward()
    assert loss.item() == pytest.approx(about["loss"], rel=1e-5)
    gradients = {f"promptnet.{name}": parameter.grad for name, parameter in promptnet.named_parameters()}
    for name, gradient in gradients.items():
        norm = about["per_param_grad_norm"][name]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7), name
        if f"grad.{name}" in data:
            theirs = data[f"grad.{name}"]
            assert (gradient - theirs).norm() / theirs.norm() < 1e-3, name
    norm = torch.nn.utils.clip_grad_norm_(promptnet.parameters(), 1.0)
    assert norm.item() == pytest.approx(about["grad_norm_before_clip"], rel=1e-4)
    torch.optim.AdamW(promptnet.parameters(), lr=2e-5, weight_decay=0.01).step()
    tuned = promptnet.state_dict()
    for name, theirs in data.items():
        if name.startswith("after_adamw."):
            close(tuned[name.removeprefix("after_adamw.promptnet.")], theirs, 5e-6)


@pytest.mark.parametrize(
    ("case", "words", "train", "permutation"),
    [("finetune_perm10", 1, "qkv", (1, 0)), ("train_noreg_k4", 4, "promptnet", (0, 1))],
)
def test_loss_and_gradient_norms_of_other_steps(inputs, case, words, train, permutation):
    """A fine-tune step on PromptNet and q/k/v, and four words: every parameter's gradient norm."""
    config = BaseConfig(str(CHECKPOINT), text_encoder=OPENCLIP, vision=OPENCLIP, clip_skip=1)
    base = BaseModel(config, Placement(torch.device("cpu"), torch.float32, torch.float32, "no"))
    folder = CHECKPOINT if words == 1 else REFERENCE
    promptnet, _, _ = read_official(Source(str(folder), None, "promptnet" if words == 1 else "promptnet_k4", ""))
    about = settings("training/summary.json")[case]
    trained = select_trainable(promptnet, base.unet, FinetuneConfig(train=train), 0).unet
    layout = concept_layout(base.text, "A photo of S*", words)
    objective = TrainingObjective(promptnet, base.unet, base.text, layout, base.scheduler.alphas_cumprod, "epsilon")
    loss = objective(recorded_batch(inputs, permutation))
    loss.backward()
    assert loss.item() == pytest.approx(about["loss"], rel=1e-5)
    parameters = {f"promptnet.{name}": value for name, value in promptnet.named_parameters()}
    parameters |= {f"unet.{name}": value for name, value in trained.items()}
    recorded_names = {name for name in about["per_param_grad_norm"] if not any(h in name for h in RESIDUAL_HEADS)}
    assert set(parameters) == recorded_names
    for name, parameter in parameters.items():
        norm = about["per_param_grad_norm"][name]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7), name


def test_a_step_with_the_regulariser(base, inputs):
    """Eq. (2) at lambda 0.01: the regulariser itself, the loss, and every parameter's gradient norm."""
    promptnet, _, _ = read_official(Source(str(CHECKPOINT), None, "promptnet", ""))
    about = settings("training/summary.json")["train_l2reg0.01"]
    words = recorded("training/train_noreg.safetensors")["pseudo_tokens"]
    assert 0.01 * embedding_l2(words).item() == pytest.approx(about["reg"], rel=1e-5)
    layout, alphas_cumprod = concept_layout(base.text, "A photo of S*", 1), base.scheduler.alphas_cumprod
    select_trainable(promptnet, base.unet, FinetuneConfig(train="promptnet"), 0)
    objective = TrainingObjective(promptnet, base.unet, base.text, layout, alphas_cumprod, "epsilon", 0.01)
    loss = objective(recorded_batch(inputs))
    loss.backward()
    assert loss.item() == pytest.approx(about["loss"], rel=1e-5)
    for name, parameter in promptnet.named_parameters():
        norm = about["per_param_grad_norm"][f"promptnet.{name}"]
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-7), name
