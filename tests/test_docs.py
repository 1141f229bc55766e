"""What the README and the other pages say: commands that run, links that lead somewhere, names that exist."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from glob import glob
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from profusion_cli import __version__
from profusion_cli.app import app
from profusion_cli.evaluation.runner import Run
from profusion_cli.evaluation.study.reading import read_study
from profusion_cli.faceworld.__main__ import app as faceworld
from profusion_cli.presets import preset_folder
from tests.conftest import draw_photo, ok

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (
    README,
    ROOT / "presets" / "studies" / "README.md",
    ROOT / "presets" / "faceworld" / "README.md",
    ROOT / "presets" / "pretraining.md",
)
TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}
LEFT_OUT = {
    "python -m pip install": "changes the environment",
    "python -m pytest": "is what runs this",
    "accelerate launch": "starts processes of its own; tests/test_pretrain.py does",
    "profusion evaluate faceworld-quick": "takes minutes",
    "profusion evaluate sd2-tables": "wants weights that are not here",
    "python -m profusion_cli.faceworld build": "takes hours; tests/test_faceworld.py builds on a small scale",
    "python -m profusion_cli.faceworld judge": "judges what `build` made",
}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """What the shell blocks of a page run, one by one; a pipe is one."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [command for line in lines for command in line.split(" && ")]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a reader's, in which every preset is the face world with next to no steps.

    The folders that stand for Stable Diffusion 2 are the face world's; a command changes in its number of steps alone.
    """
    settings = yaml.safe_load((preset_folder() / "faceworld.yaml").read_text(encoding="utf-8"))
    settings["finetune"] |= {"steps": 1, "batch_size": 2}
    settings["sample"] |= {"steps": 1}
    settings["augment"] |= {"steps": 1, "views": 8}
    settings["pretrain"] |= {"steps": 1, "batch_size": 2}
    for method in settings["methods"].values():
        method["finetune"] |= {"steps": 1, "batch_size": 2}
    settings["methods"]["dreambooth"]["finetune"]["prior_pictures"] = 2
    (tmp_path / "faceworld.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (tmp_path / "presets").symlink_to(preset_folder())
    for name in ("sd2-folder", "clip-folder"):
        (tmp_path / name).symlink_to(preset_folder() / "faceworld")
    shutil.copy(preset_folder() / "faceworld" / "promptnet.pfz", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROFUSION_PRESET", "faceworld.yaml")
    assert CliRunner().invoke(faceworld, ["draw", "3", "-o", "face.png"]).exit_code == 0
    (tmp_path / "shards").mkdir()
    for i in range(13):
        with tarfile.open(tmp_path / "shards" / f"{i:03}.tar", "w") as shard:
            shard.add("face.png")
    for name in ("painting", "park", "bench"):
        draw_photo(tmp_path / f"{name}.png", "white")
    (tmp_path / "photos").mkdir()
    for name in ("ann", "bob"):
        draw_photo(tmp_path / "photos" / f"{name}.jpg")
    return tmp_path


def play(command: str) -> None:
    """Run a command as a shell would, in this process; what an earlier one left in its output's place goes first."""
    data = b""
    for part in command.split(" | "):
        words = ["faceworld.yaml" if word == "faceworld" else word for word in shlex.split(part, comments=True)]
        words = [path for word in words for path in (sorted(glob(word)) or [word])]
        *words, target = (*words[:-2], words[-1]) if ">" in words else (*words, None)
        output = Path(words[words.index("-o") + 1] if "-o" in words else "pictures")
        if output.is_file():
            output.unlink()
        elif "sample" in words and output.is_dir():
            shutil.rmtree(output)
        if words[0] == "cat":
            data = Path(words[1]).read_bytes()
        elif words[:3] == ["python", "-m", "profusion_cli.faceworld"]:
            assert CliRunner().invoke(faceworld, words[3:]).exit_code == 0
        else:
            assert words[0] == "profusion", command
            data = ok(*words[1:], input=data).stdout_bytes
        if target is not None:
            Path(target).write_bytes(data)


@pytest.mark.slow
def test_the_readmes_commands_run(desk: Path) -> None:
    """All that need no download, in order: each finds what those before it made."""
    run, left_out = [], set()
    for command in commands(README):
        reasons = {start for start in LEFT_OUT if command.startswith(start)}
        left_out |= reasons
        if not reasons:
            play(command)
            run.append(command.split()[1])
    assert left_out == set(LEFT_OUT), "nothing is left out that is not there"
    assert set(run) >= {"finetune", "sample", "interpolate", "augment", "pretrain", "face.png"}
    for name in (
        "me.pfz",
        "friend.pfz",
        "sheet.png",
        "way.png",
        "out.png",
        "promptnet.pfz",
        "look/01.png",
        "small.pfz",
        "friend-lora.safetensors",
        "friend-word.safetensors",
        "friend-diffusers/pipeline.py",
    ):
        assert (desk / name).stat().st_size > 0, name
    assert {path.name for path in (desk / "subjects").iterdir()} == {"ann.pfz", "bob.pfz"}
    assert list((desk / "pictures").glob("*.png"))


def test_the_readmes_python_runs(desk: Path) -> None:
    (block,) = blocks(README, "python")
    assert block.count('"faceworld"') == 1
    exec(block.replace('"faceworld"', '"faceworld.yaml"'), {})
    assert json.loads(ok("inspect", "beach.png", "me.pfz", "--json").stdout)["files"][0]["is"].startswith("picture")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", text_of(target), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, link


def test_every_picture_of_the_studies_is_shown() -> None:
    folder = ROOT / "presets" / "studies"
    shown = set(re.findall(r"\]\(([^)/\s]+\.(?:png|svg))\)", text_of(folder / "README.md")))
    assert shown == {path.name for path in folder.iterdir() if path.suffix in (".png", ".svg")}


def test_pages_and_program_agree() -> None:
    """Every option and command that a page names exists, and every preset is in the README's table."""
    whole = typer.main.get_command(app)
    declared = whole.commands
    known = {
        text
        for command in (whole, *declared.values())
        for one in command.params
        for text in (*one.opts, *one.secondary_opts)
    }
    for page in PAGES:
        text = text_of(page)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text)) <= known | TORCHRUN | {"--help"}, page
        assert set(re.findall(r"profusion ([a-z]+) ", text)) <= set(declared), page
    readme = text_of(README)
    assert all(f"`profusion {name}" in readme for name in declared)
    presets = [path.stem for path in preset_folder().glob("*.yaml")]
    assert presets and all(f"| `{preset}`" in readme for preset in presets)


def test_the_study_of_the_page_makes_sense(tmp_path: Path) -> None:
    (block,) = blocks(PAGES[1], "yaml")
    (tmp_path / "study.yaml").write_text(block, encoding="utf-8")
    draw_photo(tmp_path / "face.jpg")
    study = read_study(str(tmp_path / "study.yaml"))
    assert len(Run(tmp_path / "run", study).cells(study.methods)) == 5


def test_changelog_has_this_version() -> None:
    changelog = text_of(ROOT / "CHANGELOG.md")
    assert re.search(rf"^## \[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)


def test_ci_runs_the_readmes_test_command() -> None:
    line = next(line for line in text_of(README).splitlines() if "python -m pytest" in line)
    assert line == "python -m pip install -e '.[test]' && python -m pytest -n 2"
    script = text_of(ROOT / ".ci" / "run")
    assert "$(grep -m 1 'python -m pytest' README.md) -m 'slow or not slow'" in script
