"""Checkpoints in one file, as base models: converted once, they are the folder that the same weights lie in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from profusion_cli.bundle import read_bundle
from profusion_cli.runtime import single_file
from profusion_cli.runtime.random_base import make_scheduler, write_clip_tokenizer
from tests.conftest import ok, run

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
UNET_ENDS |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
OPEN_CLIP |= {"self_attn.out_proj": "attn.out_proj"}
Network = torch.nn.Module


def renamed(name: str, table: Mapping[str, str]) -> str:
    """A path with the first part of it that the table has in its new words."""
    old = next((old for old in table if re.search(rf"(^|\.){re.escape(old)}(\.|$)", name)), None)
    return name if old is None else name.replace(old, table[old], 1)


def unet_name(name: str, layers: int, attended: set[int]) -> str:
    """Of a UNet's tensor in the original code: https://github.com/CompVis/latent-diffusion."""
    kind, rest = name.split(".", 1)
    numbers = [int(number) for number in re.findall(r"\.(\d+)", name)[:2]]
    if kind == "mid_block":
        part, number, rest = rest.split(".", 2)
        is_resnet = part == "resnets"
        return f"middle_block.{2 * int(number) if is_resnet else 1}.{renamed(rest, RESNET) if is_resnet else rest}"
    if kind not in ("down_blocks", "up_blocks"):
        return renamed(name, UNET_ENDS)
    _, part, _, rest = rest.split(".", 3)
    block, number = numbers
    into = "input_blocks" if kind == "down_blocks" else "output_blocks"
    if part == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        return f"output_blocks.{block * (layers + 1) + layers}.{2 if block in attended else 1}.{rest}"
    place = block * (layers + 1) + number + (kind == "down_blocks")
    return f"{into}.{place}." + (f"0.{renamed(rest, RESNET)}" if part == "resnets" else f"1.{rest}")


def vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets", r"encoder.down.\1.block", name)
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    for old, new in (("resnets", "block"), ("upsamplers.0", "upsample")):
        pattern = rf"decoder\.up_blocks\.(\d+)\.{re.escape(old)}"
        name = re.sub(pattern, lambda found, new=new: f"decoder.up.{levels - 1 - int(found[1])}.{new}", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        head, tail = name.split("mid_block.attentions.0.")
        return f"{head}mid.attn_1.{renamed(tail, VAE_ATTENTION)}"
    return name


def original(
    unet: torch.nn.Module, vae: torch.nn.Module, text: torch.nn.Module, second: bool
) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint in one file."""
    attended = {i for i, block in enumerate(unet.config.up_block_types) if block.startswith("Cross")}
    layers, levels = unet.config.layers_per_block, len(vae.config.block_out_channels)
    state = {}
    for name, tensor in unet.state_dict().items():
        state[f"model.diffusion_model.{unet_name(name, layers, attended)}"] = tensor
    for name, tensor in vae.state_dict().items():
        new = vae_name(name, levels)
        is_matrix = "mid.attn_1" in new and tensor.ndim == 2
        state[f"first_stage_model.{new}"] = tensor[:, :, None, None] if is_matrix else tensor
    own = {name.removeprefix("text_model."): tensor for name, tensor in text.state_dict().items()}
    if not second:
        return state | {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in own.items()}
    for name, tensor in own.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)", name)
        ends = {"embeddings.token_embedding.weight": "token_embedding.weight"}
        ends |= {"embeddings.position_embedding.weight": "positional_embedding"}
        if layer is None:
            new = ends.get(name, name.replace("final_layer_norm", "ln_final"))
        elif "_proj." in layer[2] and "out_proj" not in layer[2]:
            continue
        else:
            new = f"transformer.resblocks.{layer[1]}.{renamed(layer[2], OPEN_CLIP)}"
        state[f"cond_stage_model.model.{new}"] = tensor
    count = text.config.num_hidden_layers
    for i in range(count):
        for kind in ("weight", "bias"):
            parts = [own[f"encoder.layers.{i}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            state[f"cond_stage_model.model.transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(parts)
    last = {name: tensor for name, tensor in state.items() if f"resblocks.{count - 1}." in name}
    return state | {name.replace(f".{count - 1}.", f".{count}."): torch.ones_like(t) for name, t in last.items()}


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A family, and a model of it with random weights: as a folder, and as a file."""
    second, folder = request.param == "sd2", tmp_path_factory.mktemp(request.param) / "base"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64) if not second else (64, 128),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            attention_head_dim=(1, 2) if second else 8,
            cross_attention_dim=64,
            use_linear_projection=second,
        )
        vae = AutoencoderKL(
            sample_size=128,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(32, 32, 32, 64),
            layers_per_block=1,
        )
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_act="gelu" if second else "quick_gelu", **sizes))
        vision = CLIPVisionModel(CLIPVisionConfig(image_size=28, patch_size=14, **sizes))
    state = {name: tensor.contiguous() for name, tensor in original(unet, vae, text, second).items()}
    for name, part in (("unet", unet), ("vae", vae), ("text_encoder", text), ("vision", vision)):
        part.save_pretrained(folder / name)
    make_scheduler().save_pretrained(folder / "scheduler")
    write_clip_tokenizer(folder / "tokenizer", pad_token="!" if second else "<|endoftext|>")
    file = folder.parent / "model.safetensors"
    save_file(state, str(file))
    return request.param, folder, file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "profusion" / "checkpoints"


def tuned(photo: Path, base: Path, folder: Path, target: Path) -> Path:
    """A subject on that base model, with the folder's vision tower."""
    settings = {
        "base.random": "null",
        "base.vision.id": folder,
        "base.vision.subfolder": "vision",
        "base.resolution": 128,
    }
    settings |= {"promptnet.region_kernel_size": 1, "base.pad_token_id": "null"}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    quick = ("--preset", "tiny-random", "--no-augment", "--steps", 1, "--batch-size", 1)
    ok("finetune", photo, *quick, "--base-model", base, *given, "-o", target)
    return target


def test_a_file_is_the_folder_of_the_same_weights(weights, photo, cache, tmp_path):
    """The same fingerprints, and the same pictures from the same seed."""
    _, folder, file = weights
    bundles = [tuned(photo, base, folder, tmp_path / f"{base.stem}.pfz") for base in (folder, file)]
    prints = [read_bundle(path.read_bytes(), path.name).manifest["base"]["fingerprint"] for path in bundles]
    assert prints[0] == prints[1] and set(prints[0]) == {"unet", "vae", "text_encoder", "vision"}
    for path in bundles:
        ok("sample", path, "S* at sea", "--steps", 2, "-o", tmp_path / f"{path.stem}.png")
    ok("sample", bundles[0], "S* at sea", "--steps", 2, "--base-model", file, "-o", tmp_path / "mixed.png")
    pictures = [Image.open(tmp_path / f"{name}.png").tobytes() for name in ("base", "model", "mixed")]
    assert pictures[0] == pictures[1] == pictures[2]
    assert len(list(cache.iterdir())) == 1


def test_a_checkpoint_is_read_without_its_code(weights, photo, cache, tmp_path):
    family, folder, file = weights
    state = single_file.read_checkpoint(file)
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "model.ckpt")
    subject = tuned(photo, tmp_path / "model.ckpt", folder, tmp_path / "me.pfz")
    other = tuned(photo, folder, folder, tmp_path / "you.pfz")
    prints = [read_bundle(path.read_bytes(), path.name).manifest["base"]["fingerprint"] for path in (subject, other)]
    assert prints[0] == prints[1], family

    class Evil:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": {"x": Evil()}}, tmp_path / "evil.ckpt")
    result = run("finetune", photo, "--preset", "tiny-random", "--set", "base.random=null", "--base-model",
                 tmp_path / "evil.ckpt", "-o", tmp_path / "x.pfz")  # fmt: skip
    assert result.exit_code == 8 and not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("", "model.diffusion_model"),
        ("model.diffusion_model.", "model.diffusion_model"),
        ("cond_stage_model.", "cond_stage_model"),
        ("middle", "UNet"),
    ],
)
def test_what_is_no_such_checkpoint_is_told(weights, gone, said, photo, cache, tmp_path):
    _, _, file = weights
    kept = {name: tensor for name, tensor in single_file.read_checkpoint(file).items() if gone not in name}
    kept = kept or {"x": torch.zeros(1)}
    save_file(kept, str(tmp_path / "part.safetensors"))
    result = run("finetune", photo, "--preset", "tiny-random", "--set", "base.random=null", "--base-model",
                 tmp_path / "part.safetensors", "-o", tmp_path / "x.pfz")  # fmt: skip
    assert result.exit_code == 8 and said in result.stderr
    assert not list(cache.iterdir())


def test_a_preset_does_all_on_a_file(weights, photo, cache, tmp_path):
    """That of the family, from pre-training to an export."""
    family, folder, file = weights
    preset = {"sd1": "sd15", "sd2": "sd2"}[family]
    settings = {"base.vision.id": folder, "base.vision.subfolder": "vision", "base.resolution": 128}
    settings |= {"promptnet.region_kernel_size": 1, "pretrain.batch_size": 1, "pretrain.gradient_accumulation": 1}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    own = ("--preset", preset, "--base-model", file, *given)
    ok("pretrain", photo, *own, "--steps", 1, "-o", tmp_path / "promptnet.pfz")
    tuning = ("--promptnet", tmp_path / "promptnet.pfz", "--no-augment", "--steps", 1, "--batch-size", 1)
    subjects = []
    for train in ("attention", "lora"):
        subjects.append(tmp_path / f"{train}.pfz")
        ok("finetune", photo, *own, *tuning, "--train", train, "--self-contained", "-o", subjects[-1])
    ok("sample", subjects[0], "S* at sea", "-o", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (128, 128)
    ok("interpolate", *subjects, "S* at sea", "--frames", 2, "-o", tmp_path / "way.png")
    for to in ("lora", "embedding"):
        ok("export", subjects[1], "--to", to, "-o", tmp_path / f"{to}.safetensors")
    (word,) = load_file(tmp_path / "embedding.safetensors").values()
    assert word.shape[1] == 64
