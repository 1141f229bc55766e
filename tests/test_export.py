"""`profusion export`: what it writes, opened by the libraries that it is meant for."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from profusion_cli.bundle import read_bundle
from profusion_cli.errors import OutputError
from profusion_cli.folders import MARK, atomic_folder
from profusion_cli.runtime.changes import LowRank, add_changes, read_changes
from profusion_cli.runtime.exports import merging
from profusion_cli.runtime.exports.kohya import difference_tensors, lora_tensors, module_name
from profusion_cli.runtime.exports.stock import pipeline, promptnet
from tests.conftest import ok, run
from tests.exports import add_differences

PROMPT = "S* in style"
NAMED = ("model_index.json", "pipeline.py", "profusion.json", "promptnet")
STOCK = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "profusion_cli":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Without())
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
generators = [torch.Generator().manual_seed(3 + j) for j in range(2)]
drawn = pipe([sys.argv[2], "S* at sea"], generator=generators, steps=4, negative_prompt="blue").images
for j, image in enumerate(drawn):
    image.save(f"{sys.argv[3]}-{j}.png")
"""


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def finetuned(photo: Path, target: Path, *options: object) -> Path:
    quick = ("--preset", "tiny-random", "--no-augment", "--steps", 2, "--lr", "1e-2")
    ok("finetune", photo, *quick, *options, "-o", target)
    return target


@pytest.fixture(scope="module")
def adapted(photo: Path, work: Path) -> Path:
    """A subject of adapters, of rank 2 and with an alpha of its own."""
    options = ("--train", "lora", "--rank", 2, "--set", "finetune.adapters.alpha=4", "--self-contained")
    return finetuned(photo, work / "adapted.pfz", *options)


@pytest.fixture(scope="module")
def word(photo: Path, work: Path) -> Path:
    """A subject whose S* is an ordinary word."""
    return finetuned(photo, work / "word.pfz", "--method", "textual-inversion")


@pytest.fixture
def unet(base_folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(base_folder / "unet")


@pytest.fixture
def stock(base_folder: Path) -> StableDiffusionPipeline:
    """The base model in diffusers' own pipeline."""
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    classes = {"vae": "AutoencoderKL", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    classes |= {"unet": "UNet2DConditionModel", "scheduler": "DDIMScheduler"}
    for name, cls in classes.items():
        library = __import__("transformers" if cls.startswith("CLIP") else "diffusers")
        parts[name] = getattr(library, cls).from_pretrained(base_folder / name)
    pipe = StableDiffusionPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def predicted(unet: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    x, states = (torch.randn(shape, generator=generator) for shape in ((1, 4, 16, 16), (1, 7, width)))
    with torch.no_grad():
        return unet(x, 500, encoder_hidden_states=states).sample


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# --- diffusers -------------------------------------------------------------------------------------------------


def drawn_by_stock(folder: Path, tmp_path: Path) -> list[np.ndarray]:
    """Two pictures of a pipeline folder, in a process that has not this package."""
    arguments = (folder, PROMPT, tmp_path / "stock")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    command = [sys.executable, "-c", STOCK, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    return [pixels(tmp_path / f"stock-{j}.png") for j in range(2)]


@pytest.mark.parametrize("kind", ["whole", "adapters"])
def test_stock_diffusers_draws_the_same(kind, subject, adapted, tmp_path):
    """To a grey level, and without this package."""
    source = {"whole": subject, "adapters": adapted}[kind]
    precision = () if kind == "whole" else ("--save-dtype", "float32")
    ok("export", source, "--to", "diffusers", "--with-base", *precision, "-o", tmp_path / "folder")
    stock = drawn_by_stock(tmp_path / "folder", tmp_path)
    options = ("--steps", 4, "--negative-prompt", "blue")
    for j, prompt in enumerate((PROMPT, "S* at sea")):
        ok("sample", source, prompt, "--seed", 3 + j, *options, "-o", tmp_path / f"own-{j}.png")
        assert abs(pixels(tmp_path / f"own-{j}.png") - stock[j]).max() <= 1
    assert abs(stock[0] - stock[1]).max() > 20
    assert PROMPT.split()[0] in (tmp_path / "folder" / "README.md").read_text()


def test_a_folder_names_its_base_model(photo, base_folder, tmp_path):
    """And what it names is loaded from there."""
    source = finetuned(photo, tmp_path / "me.pfz", "--base-model", base_folder, "--set", "base.random=null")
    ok("export", source, "--to", "diffusers", "-o", tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"README.md", *NAMED}
    stock = drawn_by_stock(tmp_path / "folder", tmp_path)
    ok("sample", source, PROMPT, "--seed", 3, "--steps", 4, "--negative-prompt", "blue", "-o", tmp_path / "own.png")
    assert abs(pixels(tmp_path / "own.png") - stock[0]).max() <= 1


# --- kohya's names ---------------------------------------------------------------------------------------------


def changed(unet: UNet2DConditionModel, source: Path) -> torch.Tensor:
    """What the UNet predicts with a subject's changes."""
    parameters = dict(unet.named_parameters())
    add_changes(unet, read_changes(read_bundle(source.read_bytes(), source.name), "unet", parameters))
    return predicted(unet)


def test_adapters_are_a_lora_exactly(adapted, unet, stock, tmp_path):
    told = json.loads(ok("export", adapted, "--to", "lora", "-o", tmp_path / "me.safetensors", "--json").stdout)
    assert (told["rank"], told["error"], told["left_out_parameters"]) == (2, 0.0, 0)
    before = predicted(unet)
    wanted = changed(unet, adapted)
    stock.load_lora_weights(str(tmp_path / "me.safetensors"))
    found = predicted(stock.unet)
    assert off(found, wanted) < 1e-5 < 1e-4 < off(before, wanted)


def test_whole_changes_become_a_lora_of_a_rank(subject, unet, stock, tmp_path):
    """The higher it is, the nearer; what it costs is told, and biases are left out."""
    bundle, before = read_bundle(subject.read_bytes(), "me.pfz"), predicted(unet)
    changes = read_changes(bundle, "unet", dict(unet.named_parameters()))
    biases = sum(change.ndim == 1 for change in changes.values())
    told, offs = {}, {}
    for rank in (1, 64):
        target = tmp_path / f"{rank}.safetensors"
        arguments = ("export", subject, "--to", "lora", "--rank", rank, "--save-dtype", "float32", "-o", target)
        told[rank] = json.loads(ok(*arguments, "--json").stdout)
        assert told[rank]["left_out_parameters"] == biases and told[rank]["matrices"] == len(changes) - biases
        stock.load_lora_weights(str(target))
        weights = UNet2DConditionModel.from_config(unet.config)
        weights.load_state_dict(unet.state_dict())
        add_changes(weights, {name: change for name, change in changes.items() if change.ndim > 1})
        offs[rank] = off(predicted(stock.unet), predicted(weights))
        stock.unload_lora_weights()
    assert offs[64] < 1e-5 < offs[1] < off(before, changed(unet, subject))
    assert told[64]["error"] < told[1]["error"]
    with safe_open(tmp_path / "1.safetensors", "pt") as file:
        kept = json.loads(file.metadata()["profusion"])
    assert kept["sha256"] == bundle.sha256 and "Fusion Sampling" in kept["leaves_out"]


def test_names_are_those_that_comfyui_and_a1111_know():
    """Facts of their published code: a path with `_`, `lora_down`, `lora_up`, `alpha`, `diff` and `diff_b`."""
    block = "down_blocks.0.attentions.1.transformer_blocks.0.attn2"
    assert module_name(f"{block}.to_out.0.weight") == (
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0"
    )
    change = LowRank(torch.ones(2, 3), torch.ones(4, 2))
    tensors = lora_tensors({"mid_block.attentions.0.proj_in.weight": change}, torch.float16)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        f"{name}.lora_down.weight": (2, 3),
        f"{name}.lora_up.weight": (4, 2),
        f"{name}.alpha": (),
    }
    assert float(tensors[f"{name}.alpha"]) == 2
    whole = {f"{block}.to_q.weight": torch.ones(2, 2), f"{block}.to_out.0.bias": torch.ones(2)}
    assert set(difference_tensors(whole, torch.float16)) == {
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_q.diff",
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_out_0.diff_b",
    }


def test_whole_differences_are_all_there(subject, unet, tmp_path):
    ok("export", subject, "--to", "lora-full", "--save-dtype", "float32", "-o", tmp_path / "full.safetensors")
    tensors = load_file(tmp_path / "full.safetensors")
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    add_differences(unet, tensors)
    found = predicted(unet)
    unet.load_state_dict(before)
    assert off(found, changed(unet, subject)) < 1e-6


# --- embeddings ------------------------------------------------------------------------------------------------


def test_a_word_draws_in_stock_diffusers_as_here(word, stock, tmp_path):
    """Where S* is an ordinary word, all of it is in the embedding."""
    ok("export", word, "--to", "embedding", "-o", tmp_path / "me.safetensors")
    own = ("--sampler", "cfg", "--subject-guidance", 5, "--steps", 4, "--seed", 2)
    ok("sample", word, PROMPT, *own, "-o", tmp_path / "own.png")
    stock.load_textual_inversion(str(tmp_path / "me.safetensors"))
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    generator = torch.Generator().manual_seed(2)
    image = stock(PROMPT, num_inference_steps=4, guidance_scale=5.0, generator=generator, height=128, width=128)
    assert abs(np.asarray(image.images[0]).astype(int) - pixels(tmp_path / "own.png")).max() <= 1


def test_an_embedding_is_s_at_a_noise_level_or_an_average(subject, stock, tmp_path):
    words = {}
    for name, options in (("mean", ()), ("early", ("--timestep", 900)), ("late", ("--timestep", 10))):
        target = tmp_path / f"{name}.safetensors"
        result = ok("export", subject, "--to", "embedding", *options, "-o", target, "--json")
        told = json.loads(result.stdout)
        assert (told["spread"] > 0) == (name == "mean") and "changes" in result.stderr
        ((key, words[name]),) = load_file(target).items()
        assert key == "S*" and words[name].shape[1] == stock.text_encoder.config.hidden_size
    assert min(off(words["early"], words["late"]), off(words["mean"], words["late"])) > 0.1
    stock.load_textual_inversion(str(tmp_path / "mean.safetensors"))
    table = stock.text_encoder.get_input_embeddings().weight
    assert table[-len(words["mean"]) :].equal(words["mean"])
    refused = run("export", subject, "--to", "embedding", "--timestep", 1000, "-o", tmp_path / "x.safetensors")
    assert refused.exit_code == 2 and "0 to 999" in refused.stderr


def test_a_stranger_writes_no_code_into_a_folder(photo, tmp_path):
    """What a bundle says of its placeholder is text in the README."""
    placeholder = 'S*");print("'
    source = finetuned(photo, tmp_path / "me.pfz", "--set", f"placeholder={placeholder}")
    ok("export", source, "--to", "diffusers", "--with-base", "-o", tmp_path / "folder")
    code = (tmp_path / "folder" / "README.md").read_text().split("```python")[1].split("```")[0]
    calls = [node.func for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}


# --- code that is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [pipeline, promptnet])
def test_the_code_is_the_runtimes_own(module):
    """Every function and class of it is one of this package, to the letter, and nothing of the package is imported."""
    text = merging.merged(module.__name__)
    assert "profusion_cli" not in {name.partition(".")[0] for name in _imported(text)}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert ast.unparse(node) in _definitions()[node.name], node.name


def _imported(text: str) -> set[str]:
    """Modules that a file imports, or imports from."""
    nodes = list(ast.walk(ast.parse(text)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}


@functools.cache
def _definitions() -> dict[str, list[str]]:
    """What this package defines, by its names."""
    found: dict[str, list[str]] = {}
    for path in Path(merging.__file__).parents[2].rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.setdefault(node.name, []).append(ast.unparse(node))
    return found


def test_code_that_cannot_be_merged_is_refused(tmp_path, monkeypatch):
    sources = {
        "profusion_cli.one": "from profusion_cli.two import A\nB = A\n",
        "profusion_cli.two": "A = 1\nB = 2\n",
        "profusion_cli.renames": "from profusion_cli.two import A as C\n",
        "profusion_cli.hides": "def f():\n    from profusion_cli.two import A\n",
    }
    monkeypatch.setattr(merging, "_source", lambda name: '"""Title."""\n' + sources[name])
    assert "A = 1" in merging.merged("profusion_cli.two")
    for name, word in (("one", "both define B"), ("renames", "renames"), ("hides", "inside a block")):
        with pytest.raises(ValueError, match=word):
            merging.merged(f"profusion_cli.{name}")


# --- what goes wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "code", "said"),
    [
        ("subject", ("--to", "onnx"), 2, "lora-full"),
        ("subject", ("--to", "lora", "--with-base"), 2, "--with-base"),
        ("subject", ("--to", "lora", "--timestep", 3), 2, "--timestep"),
        ("subject", ("--to", "embedding", "--rank", 3), 2, "--rank"),
        ("subject", ("--to", "lora", "--promptnet", "p.pfz"), 2, "--promptnet"),
        ("subject", ("--to", "embedding", "--save-dtype", "float32"), 2, "--save-dtype"),
        ("subject", ("--to", "diffusers"), 2, "--with-base"),
        ("word", ("--to", "diffusers", "--with-base"), 4, "--to embedding"),
        ("word", ("--to", "lora"), 4, "--to embedding"),
        ("word", ("--to", "embedding", "--timestep", 5), 2, "never changes"),
        ("adapted", ("--to", "lora", "--rank", 2), 2, "of its own"),
    ],
)
def test_what_cannot_be_exported_is_told(kind, options, code, said, subject, word, adapted, tmp_path):
    source = {"subject": subject, "word": word, "adapted": adapted}[kind]
    target = tmp_path / ("folder" if "diffusers" in options else "x.safetensors")
    result = run("export", source, *options, "-o", target)
    assert result.exit_code == code and said in result.stderr
    assert not list(tmp_path.iterdir())


def test_targets_are_checked_first(subject, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("mine")
    for force in ((), ("--force",)):
        result = run("export", subject, "--to", "diffusers", "--with-base", "-o", tmp_path / "mine", *force)
        assert result.exit_code == 9 and "other files" in result.stderr
    assert (tmp_path / "mine" / "note.txt").read_text() == "mine"
    assert run("export", subject, "--to", "diffusers", "--with-base", "-o", tmp_path / "x.pfz").exit_code == 2
    assert run("export", subject, "--to", "diffusers", "--with-base", "-o", "-").exit_code == 2
    assert run("export", subject, "--to", "lora", "-o", tmp_path / "x.png").exit_code == 2
    assert run("export", subject, "--to", "lora", "-o", subject, "--force").exit_code == 2
    assert run("export", subject, "--to", "diffusers", "--with-base", "-o", "/").exit_code == 2
    (tmp_path / "mine" / MARK).write_text("{}")
    inside = tmp_path / "mine" / subject.name
    inside.write_bytes(subject.read_bytes())
    result = run("export", inside, "--to", "diffusers", "--with-base", "-o", tmp_path / "mine", "--force")
    assert result.exit_code == 2 and inside.exists()


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    target, rename = tmp_path / "folder", os.rename

    def written(text: str, force: bool, fails: bool = False) -> None:
        with atomic_folder(target, force) as folder:
            (folder / MARK).write_text(text)
            assert not target.exists() or (target / MARK).read_text() != text
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written("one", False, fails=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".folder.part" / "new").mkdir(parents=True)
    written("two", False)
    with pytest.raises(OutputError, match="already exists"):
        written("three", False)
    with pytest.raises(KeyboardInterrupt):
        written("four", True, fails=True)
    assert (target / MARK).read_text() == "two"

    def refused(old: Path, new: Path) -> None:
        if Path(old).name == "new":
            raise OSError(28, "no space")
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refused)
        with pytest.raises(OutputError, match="no space"):
            written("five", True)
    assert (target / MARK).read_text() == "two"
    (tmp_path / ".folder.part").mkdir()
    os.rename(target, tmp_path / ".folder.part" / "old")  # as of a process that was killed between the two
    with pytest.raises(OutputError, match="already exists"):
        written("six", False)
    assert (target / MARK).read_text() == "two"
    written("seven", True)
    assert (target / MARK).read_text() == "seven" and [path.name for path in tmp_path.iterdir()] == ["folder"]
