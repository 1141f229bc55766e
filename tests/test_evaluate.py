"""`evaluate`: studies, what is made and judged once, what a kill leaves, and what the report says."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations, pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from profusion_cli.bundle import read_bundle
from profusion_cli.config import Config, RandomConfig
from profusion_cli.console import Output
from profusion_cli.errors import InputError, OutputError
from profusion_cli.evaluation.cells import jobs, making, studio, work
from profusion_cli.evaluation.cells.cell import Cell
from profusion_cli.evaluation.cells.judging import Jury
from profusion_cli.evaluation.cells.making import Maker
from profusion_cli.evaluation.faceworld import FaceWorldJudges
from profusion_cli.evaluation.metrics import RECONSTRUCTION, make_metrics
from profusion_cli.evaluation.pairs.entries import comparison_of
from profusion_cli.evaluation.rendering import render
from profusion_cli.evaluation.report.page import write_report
from profusion_cli.evaluation.report.sheets import sheet_of
from profusion_cli.evaluation.report.tables import difference, faceless, summarise, table_of
from profusion_cli.evaluation.runner import Run
from profusion_cli.evaluation.study.reading import build_study, read_study, shipped_studies
from profusion_cli.evaluation.study.schema import Figure
from profusion_cli.evaluation.study.subjects import subjects_of
from profusion_cli.faceworld.captions import vocabulary
from profusion_cli.faceworld.judges import CLASSES
from profusion_cli.files import locked
from profusion_cli.presets import preset_folder
from profusion_cli.runtime import device
from profusion_cli.runtime.pretraining import loop
from profusion_cli.runtime.random_base import build_random_base
from profusion_cli.runtime.training import Batch, TrainingObjective
from tests.conftest import draw_photo, ok, run

PROMPTS = [{"text": "S* on a beach", "asks": {"place": "beach"}}, "S* in the snow"]
QUICK = {"sample.steps": 1, "finetune.steps": 1, "finetune.batch_size": 2, "finetune.prior_pictures": 1}


def study_of(folder: Path, **changes: object) -> dict:
    """A study of two photos on the tiny model of random weights."""
    for name, colour in (("ann", "tan"), ("bob", "brown")):
        if not (folder / f"{name}.png").exists():
            draw_photo(folder / f"{name}.png", colour)
    return {
        "preset": "tiny-random",
        "settings": QUICK,
        "subjects": {"photos": [{"file": "ann.png"}, {"file": "bob.png", "class_word": "a man"}]},
        "prompts": PROMPTS,
        "reconstructions": 1,
        "metrics": {"faceworld": {}},
        "methods": {
            "base": {"kind": "base"},
            "free": {"finetune.steps": 0, "sweep": {"sample.gamma": [0.2, 0.9]}},
            "tuned": {"augment": False},
            "inverted": {"finetune.method": "textual-inversion"},
            "both": {"kind": "two", "sweep": {"share": [0, 0.5]}, "augment": False, "reconstructions": 0},
        },
        "outputs": {
            "table": {"title": "All"},
            "curve": {"title": "Free", "kind": "curve", "x": "identity", "y": "adherence", "methods": ["free"]},
            "sheet": {"title": "Ann", "kind": "sheet"},
            "chosen": {"title": "Base", "methods": ["base"], "against": "base"},
        },
        "pairs": {"ours": "tuned", "others": ["inverted"], "count": 4},
        **changes,
    }


def write(folder: Path, source: dict, name: str = "study.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(source, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; the study lies beside it."""
    folder = tmp_path_factory.mktemp("evaluate")
    ok("evaluate", write(folder, study_of(folder)), "-o", folder / "run")
    return folder / "run"


def test_a_run_leaves_every_picture_with_its_scores(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    told = yaml.safe_load(ok("inspect", finished).stdout)
    assert (told["is"], told["study"]) == ("run of a study", results["study"])
    assert told["pictures"].startswith(f"{len(results['pictures'])}, of 2 subjects, by ") and len(told) < 10
    pictures = results["pictures"]
    assert len(pictures) == 5 * 2 * 3 + 2 * 2 * 2 and results["failed"] == [] and results["missing"] == {}
    for row in pictures:
        assert (finished / row["file"]).is_file()
        columns = set(FaceWorldJudges.columns)
        assert set(row["scores"]) == columns | ({f"second: {c}" for c in columns} if row["family"] == "both" else set())
        assert (row["scores"]["adherence"] is None) == (row["prompt"] != "S* on a beach")
        of_cell = list((finished / row["file"]).parent.glob("features-KID-*"))
        assert len(of_cell) == (row["family"] != "both"), "of pictures of one subject"
    assert {row["method"] for row in pictures if row["family"] == "free"} == {"free, gamma 0.2", "free, gamma 0.9"}
    assert torch.__version__.startswith(results["versions"]["torch"]) and len(results["cells"]) == 14
    assert not list((finished / "bundles").rglob("*.pfz"))


def test_methods_draw_the_same_prompts_with_the_same_numbers(finished: Path) -> None:
    pictures = json.loads((finished / "results.json").read_text())["pictures"]
    drawn_by = {}
    for row in (row for row in pictures if row["family"] != "both"):
        drawn_by.setdefault(row["method"], []).append((row["subject"], row["prompt"], row["index"]))
    assert len({json.dumps(jobs) for jobs in drawn_by.values()}) == 1
    assert len(set(drawn_by["base"])) == 6


def test_two_subjects_of_which_one_has_no_share_are_one(finished: Path) -> None:
    rows = json.loads((finished / "results.json").read_text())["pictures"]
    files = {(row["method"], row["subject"], row["index"]): finished / row["file"] for row in rows}
    together = {key: file for key, file in files.items() if key[0] == "both, share 0"}
    assert len(together) == 4
    for (_, *which), file in together.items():
        with Image.open(file) as both, Image.open(files["tuned", *which]) as alone:
            assert both.tobytes() == alone.tobytes()


def test_the_report_stands_alone(finished: Path) -> None:
    page, tables = (finished / "report.html").read_text(), (finished / "tables.md").read_text()
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert page.count("data:image/png;base64,") == 1
    for name in ("free, gamma 0.2", "reconstruction: identity", "torch"):
        assert name in page
    assert "| tuned | 2 | 4 |" in tables
    with Image.open(finished / "sheet.png") as sheet:
        assert sheet.width > 200


def test_nothing_that_is_finished_is_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("done again")

    before = (finished / "results.json").read_text()
    monkeypatch.setattr(Maker, "_make_group", refuse)
    monkeypatch.setattr(Jury, "_judge", refuse)
    ok("evaluate", finished.parent / "study.yaml", "-o", finished)
    assert (finished / "results.json").read_text() == before


def test_a_kill_loses_one_cell_and_changes_no_picture(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, target = write(tmp_path, study_of(tmp_path)), tmp_path / "run"
    real, cells = Maker._save, []

    def save(self: Maker, cell: Cell, draw: object, **origin: object) -> None:
        cells.append(cell.folder)
        if len(cells) == 4:
            (cell.folder).mkdir(parents=True)
            (cell.folder / "half.png").write_bytes(b"")
            raise KeyboardInterrupt
        real(self, cell, draw, **origin)

    monkeypatch.setattr(Maker, "_save", save)
    assert run("evaluate", study, "-o", target, "--limit", 1).exit_code == 130
    assert sum((folder / "cell.json").exists() for folder in cells) == 3
    ok("evaluate", study, "-o", target, "--limit", 1)
    assert len(cells) == 4 + 4 and len(set(cells)) == 7
    rows = json.loads((target / "results.json").read_text())["pictures"]
    assert len(rows) == 5 * 3 + 2 * 2
    for row in rows:
        with Image.open(finished / row["file"]) as one, Image.open(target / row["file"]) as other:
            assert one.tobytes() == other.tobytes()


def test_a_changed_study_goes_on_only_when_asked(finished: Path, tmp_path: Path) -> None:
    source = study_of(finished.parent)
    source["methods"]["tuned"] = {"augment": False, "sample.gamma": 0.5}
    changed = write(finished.parent, source, "changed.yaml")
    before = (finished / "results.json").read_text()
    result = run("evaluate", changed, "-o", finished)
    assert result.exit_code == 9 and "--continue" in result.stderr
    assert (finished / "results.json").read_text() == before
    run_ = Run(finished, read_study(str(changed)))
    again = [cell for cell in run_.cells(run_.study.methods) if cell.made is None]
    assert {cell.method.name for cell in again} == {"tuned"}
    original = (finished / "study.yaml").read_text()
    write(finished, dict(run_.study.source))
    _, entries, _, unfinished = comparison_of(finished)
    assert unfinished == 2 and {entry.method for entry in entries} == {"inverted"}
    (finished / "study.yaml").write_text(original)
    (tmp_path / ".lock").write_text("another program's")
    assert run("evaluate", changed, "-o", tmp_path).exit_code == 9
    assert [path.name for path in tmp_path.iterdir()] == [".lock"], "what is no run is left as it was"


def test_only_what_is_asked_for_is_made(tmp_path: Path) -> None:
    study = write(tmp_path, study_of(tmp_path))
    ok("evaluate", study, "-o", tmp_path / "run", "--only", "curve", "--limit", 1)
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]
    assert {(row["family"], row["subject"]) for row in rows} == {("free", "ann")}
    assert (tmp_path / "run" / "curve.svg").is_file()
    ok("evaluate", study, "-o", tmp_path / "run", "--only", "chosen")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]
    made = {(row["family"], row["subject"]) for row in rows}
    assert made == {("free", "ann"), ("base", "ann"), ("base", "bob")}, "what was made before is still told of"
    assert "| free, gamma 0.2 | 1 | 2 |" in (tmp_path / "run" / "tables.md").read_text()


def test_a_cell_that_fails_and_a_missing_judge_stop_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = study_of(tmp_path, metrics={"clip": {"models": ["RN50"]}, "faceworld": {}}, pairs=None, outputs={})
    source["methods"] = {
        "free": {"finetune.steps": 0, "sweep": {"sample.gamma": [0.2, 0.5, 0.9]}},
        "wrong": {"augment": False, "promptnet.weights": "no.pfz"},
    }
    real = studio.Studio.draw

    def draw(self: studio.Studio, config: Config, *rest: object) -> list[Image.Image]:
        if config.sample.gamma == 0.5:
            raise InputError("not this one", "")
        return real(self, config, *rest)

    monkeypatch.setattr(studio.Studio, "draw", draw)
    tried, tune = [], jobs.make_subject
    monkeypatch.setattr(jobs, "make_subject", lambda *given, **more: (tried.append(given), tune(*given, **more)))
    result = run("evaluate", write(tmp_path, source), "-o", tmp_path / "run")
    assert result.exit_code == 5, "of the first that failed"
    assert "4 of 8 cells failed" in result.stderr and "no.pfz" in result.stderr
    assert len(tried) == 2 + 1, "free for both, and wrong once"
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {row["method"] for row in results["pictures"]} == {"free, gamma 0.2", "free, gamma 0.9"}
    assert len(results["failed"]) == 4 and list(results["missing"]) == ["CLIP RN50"]
    assert "| wrong | 0 | 0 |" in (tmp_path / "run" / "tables.md").read_text()
    assert "CLIP RN50" in (tmp_path / "run" / "report.html").read_text()


def test_progress_comes_from_inside_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the steps of what is trained and drawn, each as heavy as it is."""
    seen: list[float] = []
    totals: list[float] = []

    @contextmanager
    def progress(self: Output, title: str, total: float, counted: bool = True) -> Iterator[Callable[..., None]]:
        if title == "Making":
            totals.append(total)
        yield lambda done, remark="": seen.append(done) if title == "Making" else None

    monkeypatch.setattr(Output, "progress", progress)
    settings = {"sample.steps": 2, "finetune.steps": 3, "finetune.batch_size": 2, "finetune.prior_pictures": 2}
    source = study_of(tmp_path, settings=settings, metrics={}, outputs={}, pairs=None, prompts=["S* on a beach"])
    source["methods"] = {
        "base": {"kind": "base"},
        "alone": {"augment": False},
        "again": {"augment": False, "sample.gamma": 0.1},
        "dreambooth": {"finetune.method": "dreambooth"},
    }
    ok("evaluate", write(tmp_path, source), "-o", tmp_path / "run", "--limit", 1)
    assert seen == sorted(seen) and seen[0] == 0
    assert totals == [pytest.approx(seen[-1])]
    pictures, step, prior = 2, 2 * work.TRAINING, 2 * 10 * 2  # of the class, in the preset's steps
    assert seen[-1] == pytest.approx(pictures * 2 * (2 + 5 + 5 + 2) + 3 * step + 3 * 2 * step + prior)
    gaps = [round(after - before, 6) for before, after in pairwise(sorted(set(seen)))]
    assert max(gaps) == prior, "pictures of the class, which diffusers' pipeline draws"
    assert (gaps.count(step), gaps.count(2 * step)) == (3, 3), "every training step, DreamBooth's with the class"
    assert gaps.count(5) == 2 * pictures * 2, "every step of Fusion Sampling"


def test_photos_of_the_command_line_are_the_subjects(tmp_path: Path) -> None:
    draw_photo(tmp_path / "cy_young.png")
    source = study_of(tmp_path, methods={"named": {"kind": "described"}, "free": {"finetune.steps": 0}})
    source["outputs"] = {"table": {"title": "All"}}
    study = write(tmp_path, {key: value for key, value in source.items() if key not in ("subjects", "pairs")})
    assert run("evaluate", study, "-o", tmp_path / "run").exit_code == 3
    ok("evaluate", study, "-o", tmp_path / "run", "--photos", tmp_path / "cy_young.png", "--only", "table")
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]
    assert {row["subject"] for row in rows} == {"cy_young"}
    assert run("evaluate", study, "-o", tmp_path / "other", "--photos", tmp_path / "no.png").exit_code == 5


def test_a_promptnet_is_trained_once_for_a_study_on_what_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("many/0", "many/1", "many/2", "other/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw_photo(tmp_path / f"{name}.png")
    settings = {**QUICK, "finetune.steps": 0, "pretrain.steps": 2, "pretrain.batch_size": 2}
    preset = yaml.safe_load((preset_folder() / "tiny-random.yaml").read_text())
    preset["pretrain"] = {**preset.get("pretrain", {}), "ema_decay": 0.9, "embedding_l2": 0.5}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    settings |= {"pretrain.ema_decay": 0.0}
    once = {"prompts": ["S* on a beach"], "reconstructions": 0, "metrics": {}}
    source = study_of(tmp_path, settings=settings, preset="mine.yaml", outputs={}, pairs=None, **once)
    source["methods"] = {
        "the preset's": {},
        "pulled": {"sweep": {"pretrain.embedding_l2": [0.0, 1.0]}},
        "e4t": {"pretrain": {"embedding_l2": 1.0}},
    }
    study = write(tmp_path, source)
    assert run("evaluate", study, "-o", tmp_path / "run").exit_code == 3
    assert run("evaluate", study, "-o", tmp_path / "run", "--pretrain-on", tmp_path / "none").exit_code == 5
    assert not (tmp_path / "run").exists()
    trained, real = [], jobs.make_promptnet
    monkeypatch.setattr(jobs, "make_promptnet", lambda *given: (trained.append(given), real(*given)))
    ok("evaluate", study, "-o", tmp_path / "run", "--pretrain-on", tmp_path / "many")
    bundles = [read_bundle(path.read_bytes(), path.name) for path in (tmp_path / "run" / "promptnets").glob("*.pfz")]
    trained_with = [bundle.manifest["config"]["pretrain"] for bundle in bundles]
    assert len(trained) == 2 and {own.get("embedding_l2", 0.0) for own in trained_with} == {0.0, 1.0}
    assert all(own.get("ema_decay", 0.0) == 0.0 for own in trained_with), "not the preset's"
    cells = json.loads((tmp_path / "run" / "results.json").read_text())["cells"]
    assert len(cells) == 8
    for one, other in combinations(("the preset's", "pulled, embedding_l2 0.0", "pulled, embedding_l2 1.0"), 2):
        assert cells[f"{one} / ann"]["bundles"] != cells[f"{other} / ann"]["bundles"]
    run_ = Run(tmp_path / "run", read_study(str(study), pretrain_on=str(tmp_path / "other")))
    assert [cell.method.name for cell in run_.cells(run_.study.methods) if cell.made] == ["the preset's"] * 2
    shutil.rmtree(tmp_path / "many")
    ok("evaluate", study, "-o", tmp_path / "run", "--pretrain-on", tmp_path / "many")


def test_a_pretraining_that_fails_is_not_tried_for_every_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "broken.png").write_bytes(b"no picture")
    source = study_of(tmp_path, outputs={}, pairs=None, methods={"own": {"pretrain": {"steps": 1}}})
    tried, real = [], jobs.make_promptnet
    monkeypatch.setattr(jobs, "make_promptnet", lambda *given: (tried.append(given), real(*given)))
    monkeypatch.setattr(jobs, "make_subject", tried.append)
    result = run("evaluate", write(tmp_path, source), "-o", tmp_path / "run", "--pretrain-on", tmp_path / "many")
    assert result.exit_code == 5 and "2 of 2 cells failed" in result.stderr
    assert len(tried) == 1


def test_a_pretraining_that_was_cut_off_on_another_cpu_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the precision that `auto` means here: its checkpoint is of another one."""
    own = {"pretrain": {"steps": 2, "batch_size": 2, "checkpoint_every": 1}, "finetune.steps": 0}
    source = study_of(tmp_path, outputs={}, pairs=None, metrics={}, prompts=["S*"], reconstructions=0, pretrain_on=2)
    study, folder = write(tmp_path, {**source, "methods": {"own": own}}), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "asked_to_stop", Mock(side_effect=[0, KeyboardInterrupt]))
        assert run("evaluate", study, "-o", folder, "--limit", 1).exit_code == 130
    assert len(list(folder.glob("promptnets/*.work/checkpoint-*"))) == 1
    monkeypatch.setattr(device, "cpu_computes_bfloat16", lambda: True)
    ok("evaluate", study, "-o", folder, "--limit", 1)


def test_every_cell_is_drawn_as_its_own_settings_say(tmp_path: Path) -> None:
    """Cells that share a bundle, or need none, still have a size, a base model and a precision of their own."""
    build_random_base(tmp_path / "base", "tiny", 5)
    other = {"base.id": str(tmp_path / "base"), "base.random": None}
    source = study_of(tmp_path, outputs={}, pairs=None, metrics={}, prompts=["S* on a beach"], reconstructions=0)
    source["methods"] = {
        "base": {"kind": "base"},
        "other": {"kind": "base", **other},
        "half": {"kind": "base", "dtype": "bfloat16"},
        "again": {"kind": "base"},
        "wide": {"finetune.steps": 0, "sweep": {"sample.width": [192, 128, 100], "sample.gamma": [0.3, 0.6]}},
    }
    result = run("evaluate", write(tmp_path, source), "-o", tmp_path / "run", "--limit", 1)
    assert result.exit_code == 3 and "2 of 10 cells failed" in result.stderr, "100 pixels are not possible"
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    pictures = {}
    for row in results["pictures"]:
        with Image.open(tmp_path / "run" / row["file"]) as picture:
            pictures[row["method"]] = picture.copy()
    assert len(pictures) == 8
    for method in ("other", "half"):
        assert pictures[method].tobytes() != pictures["base"].tobytes(), method
    assert pictures["again"].tobytes() == pictures["base"].tobytes()
    for method, picture in pictures.items():
        assert picture.width == (192 if "width 192" in method else 128), method
    assert {device.split(", ")[1] for device in results["devices"]} == {"torch.float32", "torch.bfloat16"}


def test_kept_bundles_are_drawn_from_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base model that is named by where it lies from here is remembered by its full path."""
    build_random_base(tmp_path / "base", "tiny", 5)
    settings = {**QUICK, "base.id": "base", "base.random": None, "augment.inpaint": False, "augment.views": 1}
    source = study_of(tmp_path, outputs={}, pairs=None, metrics={}, settings=settings, prompts=["S*"])
    study = write(tmp_path, {**source, "methods": {"tuned": {"augment": False}}})
    monkeypatch.chdir(tmp_path)
    ok("evaluate", study, "-o", "run", "--limit", 1, "--keep-bundles")
    (kept,) = (tmp_path / "run" / "bundles").rglob("*.pfz")
    assert not (tmp_path / "run" / "work").exists()
    monkeypatch.chdir("/")
    ok("sample", kept, "S*", "-o", tmp_path / "picture.png")


def test_runs_that_share_bundles_make_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"pretrain": {"steps": 1, "batch_size": 2}}
    source = study_of(tmp_path, outputs={}, pairs=None, metrics={}, prompts=["S*"], reconstructions=0, pretrain_on=2)
    source["methods"] = {"tuned": {"augment": False}, "own": {**own, "augment": False}}
    study, bundles = write(tmp_path, source), tmp_path / "bundles"
    ok("evaluate", study, "-o", tmp_path / "one", "--limit", 1, "--bundles", bundles)
    assert not any((tmp_path / "one" / folder).exists() for folder in ("bundles", "work", "promptnets"))
    before = {path: path.stat().st_mtime_ns for path in bundles.rglob("*.pfz")}
    assert [path.parent.name for path in sorted(before)] == ["finetune", "finetune", "promptnets"]
    source["settings"] = {**QUICK, "sample.gamma": 0.3}
    for name in ("make_subject", "make_promptnet"):
        monkeypatch.setattr(jobs, name, Mock(side_effect=AssertionError))
    study = write(tmp_path, source)
    monkeypatch.chdir(tmp_path)
    ok("evaluate", study, "-o", tmp_path / "two", "--limit", 1, "--bundles", "bundles")
    assert before == {path: path.stat().st_mtime_ns for path in bundles.rglob("*.pfz")}
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("one", "two")]
    assert all(len(result["pictures"]) == 2 for result in results)
    refused = run("evaluate", study, "-o", tmp_path / "one", "--bundles", bundles, "--keep-bundles")
    assert refused.exit_code == 2 and "--keep-bundles has no effect" in refused.stderr


def test_what_is_pretrained_on_given_pictures_is_not_shared(tmp_path: Path) -> None:
    """Others may have taken their place by the next run."""
    own = {"pretrain": {"steps": 1, "batch_size": 2}, "augment": False}
    source = study_of(tmp_path, outputs={}, pairs=None, metrics={}, prompts=["S*"], reconstructions=0)
    source["methods"] = {"own": own, "tuned": {"augment": False}}
    study, bundles = write(tmp_path, source), tmp_path / "kept"
    ok("evaluate", study, "-o", tmp_path / "run", "--limit", 1, "--bundles", bundles, "--pretrain-on", tmp_path)
    assert len(list(bundles.rglob("*.pfz"))) == 1
    assert [path.parent.name for path in (tmp_path / "run").rglob("*.pfz")] == ["promptnets"]


def test_a_folder_of_bundles_that_cannot_be_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "make_subject", Mock(side_effect=AssertionError))
    study = write(tmp_path, study_of(tmp_path))
    (tmp_path / "file").write_text("")
    result = run("evaluate", study, "-o", tmp_path / "run", "--bundles", tmp_path / "file")
    assert result.exit_code == 9 and "--bundles" in result.stderr


def test_every_subject_is_tuned_in_the_precision_of_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process makes them all, and accelerate's precision is the process's."""
    used, real = [], TrainingObjective.forward

    def forward(self: TrainingObjective, batch: Batch) -> torch.Tensor:
        if not batch.noise.is_meta:  # else memory is counted
            used.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return real(self, batch)

    monkeypatch.setattr(TrainingObjective, "forward", forward)
    source = study_of(tmp_path, outputs={}, pairs=None, metrics={}, prompts=["S* on a beach"])
    source["settings"] = {**QUICK, "finetune.gradient_accumulation": 1}
    source["methods"] = {dtype: {"augment": False, "dtype": dtype} for dtype in ("float32", "bfloat16")}
    ok("evaluate", write(tmp_path, source), "-o", tmp_path / "run", "--limit", 1)
    assert used == [torch.float32, torch.bfloat16]


def test_a_full_disk_stops_a_run_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = making.write_json, []

    def full(path: Path, value: object) -> None:
        written.append(path)
        if len(written) > 1:
            raise OutputError(f"'{path}' cannot be written: no space left on the device.", "Free some space.")
        real(path, value)

    monkeypatch.setattr(making, "write_json", full)
    source = study_of(tmp_path, outputs={}, pairs=None, methods={"base": {"kind": "base", "sweep": {"seed": [0, 1]}}})
    result = run("evaluate", write(tmp_path, source), "-o", tmp_path / "run")
    assert result.exit_code == 9 and "no space left" in result.stderr
    assert len(written) == 2, "nothing is tried after it"
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]) == 3
    monkeypatch.undo()

    def no_report(*_: object) -> None:
        raise OutputError("no report", "")

    def stop(*_: object) -> None:
        raise InputError("the first error", "")

    monkeypatch.setattr(Run, "report", no_report)
    monkeypatch.setattr(Run, "make", stop)
    result = run("evaluate", tmp_path / "study.yaml", "-o", tmp_path / "run")
    assert result.exit_code == 5 and "the first error" in result.stderr and "no report" in result.stderr


def test_two_commands_do_not_work_in_one_folder(finished: Path) -> None:
    source = study_of(finished.parent, description="another")
    changed = write(finished.parent, source, "another.yaml")
    with locked(finished, "mine", ""):
        result = run("evaluate", changed, "-o", finished, "--continue")
    assert result.exit_code == 9 and "at work" in result.stderr
    ok("evaluate", finished.parent / "study.yaml", "-o", finished)


def test_two_subjects_are_drawn_together_where_there_are_two(tmp_path: Path) -> None:
    source = study_of(tmp_path, outputs={}, pairs=None, metrics={})
    source["methods"] = {"free": {"finetune.steps": 0}, "both": {"kind": "two", "finetune.steps": 0}}
    source["subjects"] = {"photos": [{"file": "ann.png"}]}
    result = ok("evaluate", write(tmp_path, source), "-o", tmp_path / "run")
    assert "left out: both" in " ".join(result.stderr.split())
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]
    assert {row["method"] for row in rows} == {"free"}


def test_baselines_are_not_augmented_wherever_their_name_stands(tmp_path: Path) -> None:
    source = {"preset": "tiny-random", "prompts": ["S*"], "methods": {"a": {}, "b": {"finetune.method": "profusion"}}}
    source["methods"]["c"] = {"sweep": {"finetune.method": ["e4t", "profusion"]}}
    preset = yaml.safe_load((preset_folder() / "tiny-random.yaml").read_text())
    preset["finetune"] = {**preset.get("finetune", {}), "method": "dreambooth"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    by_preset = build_study({**source, "preset": str(tmp_path / "mine.yaml")}, "s", tmp_path)
    assert [method.augment for method in by_preset.methods] == [False, True, False, True]
    source["settings"] = {"finetune.method": "dreambooth"}
    augmented = [method.augment for method in build_study(source, "s", Path()).methods]
    assert augmented == [False, True, False, True]


def test_only_makes_what_differences_are_taken_from() -> None:
    source = {"preset": "tiny-random", "prompts": ["S*"], "methods": {"a": {}, "b": {}, "c": {}}}
    source["outputs"] = {"t": {"title": "T", "methods": ["b"], "against": "a"}}
    assert [method.name for method in build_study(source, "s", Path()).chosen("t")] == ["a", "b"]


def test_missing_faces_are_told_of_by_the_right_name() -> None:
    columns = ("face found", "face found in photo", "second: face found", "second: face found in photo")
    rows = [
        {"subject": subject, "scores": dict(zip(columns, values, strict=True))}
        for subject, values in {"ann": (1.0, 1.0, 1.0, 0.0), "bob": (0.0, 0.0, 0.0, 1.0)}.items()
    ]
    told = faceless(rows)
    assert len(told) == 2 and "1 of 2 pictures" in told[0]
    assert "bob" in told[1] and "ann" not in told[1]


def test_people_compare_the_pictures_of_a_run(finished: Path) -> None:
    result = ok("evaluate", "--pairs", finished)
    page, key = result.stdout.split()
    assert Path(page).is_file() and Path(key).is_file()
    known = json.loads(Path(key).read_text())
    answers = {
        "kind": "answers",
        "page": known["page"],
        "rater": "Ann",
        "answers": {pair: "left" if item["left"] == "tuned" else "right" for pair, item in known["pairs"].items()},
    }
    assert len(answers["answers"]) == 4
    compared = comparison_of(finished)[1]
    assert compared and not any("a photo of" in entry.prompt for entry in compared), "no reconstructions"
    assert run("evaluate", "--pairs-results", page).exit_code == 2
    assert run("evaluate", "--pairs", finished).exit_code == 9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "sd3"}, "sd3"),
        ({"prompts": []}, "prompts is empty"),
        ({"prompts": ["no placeholder"]}, "no placeholder"),
        ({"prompts": ["S*", "S*"]}, "twice"),
        ({"prompts": [{"text": "S*", "asks": {"style": "animee"}}]}, "'anime'"),
        ({"prompts": [{"text": "S*", "asks": {"styl": "anime"}}]}, "'style'"),
        ({"prompts": [f"S* {number}" for number in range(100)]}, "too many"),
        ({"pictures": 0}, "pictures=0"),
        ({"pictures": 101}, "up to 100"),
        ({"reconstructions": -1}, "reconstructions"),
        ({"prompts_per_subject": -1}, "prompts_per_subject"),
        ({"preset": "my.yaml"}, "my.yaml"),
        ({"methods": {}}, "methods is empty"),
        ({"methods": {"a": {"finetune.stpes": 1}}}, "methods.a"),
        ({"methods": {"a": {"kind": "bass"}}}, "base"),
        ({"methods": {"a": {"finetune.method": "dreambot"}}}, "dreambooth"),
        ({"methods": {"a": {"sweep": {"sample.gamma": 1}}}}, "sweep"),
        ({"methods": {"a": {"sweep": {"sample.gamma": [1, 1]}}}}, "Two methods"),
        ({"methods": {"a": {"pictures": 0}}}, "pictures"),
        ({"methods": {"a": 3}}, "methods.a"),
        ({"methods": {"a": {"pretrain": {"steps": 1}}}, "pairs": None, "outputs": {}}, "--pretrain-on"),
        ({"methods": {"a": {"kind": "drawn"}}}, "face world"),
        ({"methods": {"a": {"share": 0.5}}}, "share"),
        ({"methods": {"a": {"photo": {"place": "beach"}}}}, "methods.a"),
        ({"prompts_per_subject": 9}, "more prompts"),
        ({"metrics": {"clap": {}}}, "clip"),
        ({"metrics": {"faceworld": {"foldr": "x"}}}, "folder"),
        ({"outputs": {"t": {"title": "T", "methods": ["tund"]}}}, "tuned"),
        ({"outputs": {"t": {"title": "T", "kind": "pie"}}}, "outputs.t"),
        ({"outputs": {"t": {"title": "T", "kind": "curve"}}}, "x and y"),
        ({"outputs": {"t": {"title": "T", "kind": "curve", "x": "identity", "y": "adherance"}}}, "'adherence'"),
        ({"outputs": {"t": {"title": "T", "columns": ["CLIP RN50"]}}}, "CLIP RN50"),
        ({"pretrain_on": 0}, "pretrain_on"),
        ({"outputs": {"../../t": {"title": "T"}}}, "name of a file"),
        ({"outputs": {"t": {"title": "T", "kind": "sheet", "subject": -1}}}, "subject -1"),
        ({"outputs": {"t": {"title": "T", "against": "tund"}}}, "tuned"),
        ({"outputs": {"t": {"title": "T", "x": "identity"}}}, "x is for a curve"),
        ({"outputs": {"t": {"title": "T", "kind": "sheet", "against": "tuned"}}}, "against is for a table"),
        ({"outputs": {"t": {"title": "T", "kind": "sheet", "columns": ["identity"]}}}, "no columns"),
        ({"pairs": {"ours": "tuned", "others": ["nobody"]}}, "nobody"),
        ({"pairs": {"ours": "tuned", "others": ["tuned"]}}, "pairs"),
        ({"pairs": {"ours": "tuned", "others": ["base"], "count": 0}}, "pairs"),
        ({"subjects": {}}, "--photos"),
        ({"subjects": {"photos": [{"file": "nowhere.png"}]}}, "nowhere.png"),
        ({"subjects": {"photos": [{"file": "ann.png"}, {"file": "ann.png"}]}}, "Two subjects"),
        ({"subjects": {"faceworld": {"count": 5000}}}, "1000 people"),
        ({"subjects": {"faceworld": {"split": "tst"}}}, "test"),
        ({"sbjects": {}}, "subjects"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes: dict, said: str, tmp_path: Path) -> None:
    result = run("evaluate", write(tmp_path, study_of(tmp_path, **changes)), "-o", tmp_path / "run")
    assert result.exit_code == 3, result.stderr
    assert said in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["one", "two", "-o", "x"], 2),
        (["nosuch", "-o", "x"], 3),
        (["faceworld-quick"], 2),
        (["faceworld-quick", "-o", "x", "--only", "table9"], 3),
        (["faceworld-quick", "-o", "x", "--key", "k"], 2),
        (["--pairs", "--pairs-results", "x"], 2),
        (["--pairs", "x", "--limit", "1"], 2),
        (["--pairs", "x"], 5),
        (["--pairs-results", "x.json"], 2),
        (["--pairs-results", "x.json", "--key", "k.json"], 5),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", *arguments).exit_code == code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"), [("", "mapping"), ("- a", "mapping"), ("{", "valid YAML"), ("preset: a\npreset: b", "twice")]
)
def test_a_file_that_is_no_study_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    result = run("evaluate", tmp_path / "study.yaml", "-o", tmp_path / "run")
    assert result.exit_code == 3
    assert said in result.stderr and "study.yaml" in " ".join(result.stderr.split())


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_a_place_that_cannot_hold_a_run_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = run("evaluate", write(tmp_path, study_of(tmp_path)), "-o", tmp_path / place)
    assert result.exit_code == 9, result.stderr
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "run" / "study.yaml").mkdir(parents=True)
    result = run("evaluate", tmp_path / "study.yaml", "-o", tmp_path / "run")
    assert result.exit_code == 9 and "cannot be a run's folder" in result.stderr


def test_a_photo_that_is_damaged_stops_a_run_before_it_begins(tmp_path: Path) -> None:
    study = write(tmp_path, study_of(tmp_path))
    (tmp_path / "bob.png").write_bytes((tmp_path / "bob.png").read_bytes()[:300])
    result = run("evaluate", study, "-o", tmp_path / "run")
    assert result.exit_code == 5 and "bob.png" in result.stderr
    assert not (tmp_path / "run").exists()


def cells_in(study: Path, folder: Path) -> list[Cell]:
    made = Run(folder, read_study(str(study)))
    return made.cells(made.study.methods)


def cells_of(study: Path, folder: Path) -> dict[tuple[str, str], bool]:
    """Which cells of a run are finished, by method and subject."""
    return {(cell.method.name, cell.subject.name): cell.made is not None for cell in cells_in(study, folder)}


def test_new_weights_photos_and_presets_make_cells_stale(tmp_path: Path) -> None:
    """Nothing in the study's file changes."""
    random_base = RandomConfig("tiny", 0)
    build_random_base(tmp_path / "base", random_base.size, random_base.seed)
    preset = yaml.safe_load((preset_folder() / "tiny-random.yaml").read_text())
    preset["base"] |= {"id": str(tmp_path / "base"), "random": None}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    once = {"prompts": ["S* on a beach"], "reconstructions": 0}
    source = study_of(tmp_path, preset="mine.yaml", outputs={}, pairs=None, metrics={}, **once)
    source["methods"] = {"base": {"kind": "base"}, "free": {"finetune.steps": 0}}
    study, folder = write(tmp_path, source), tmp_path / "run"
    ok("evaluate", study, "-o", folder)
    assert all(cells_of(study, folder).values())

    draw_photo(tmp_path / "ann.png", "red")
    assert cells_of(study, folder) == {
        ("base", "ann"): False, ("base", "bob"): True, ("free", "ann"): False, ("free", "bob"): True
    }  # fmt: skip
    draw_photo(tmp_path / "ann.png", "tan")
    assert all(cells_of(study, folder).values())

    preset["sample"] = {**preset.get("sample", {}), "gamma": 0.123}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    assert not any(cells_of(study, folder).values())
    result = run("evaluate", study, "-o", folder)
    assert result.exit_code == 9 and "changed since" in " ".join(result.stderr.split())
    preset["sample"].pop("gamma")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset))
    assert all(cells_of(study, folder).values())

    weights = next((tmp_path / "base" / "unet").glob("*.safetensors"))
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: tensor * 1.05 for name, tensor in tensors.items()}, weights)
    assert not any(cells_of(study, folder).values())
    assert len(list(folder.rglob("*.pfz"))) == 0


def test_a_run_on_another_cpu_does_not_mix_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the study changes but what `auto` means; people can compare the pictures wherever they are."""
    source = study_of(tmp_path, metrics={}, outputs={}, pairs={"ours": "tuned", "others": ["free"], "count": 1})
    source["methods"] = {"base": {"kind": "base"}, "free": {"finetune.steps": 0}, "tuned": {"augment": False}}
    study, folder = write(tmp_path, source), tmp_path / "run"
    named = {
        dtype: write(tmp_path, {**source, "settings": {**QUICK, "dtype": dtype}}, f"{dtype}.yaml")
        for dtype in ("float32", "bfloat16")
    }
    ok("evaluate", study, "-o", folder, "--limit", 1)
    before = cells_of(study, folder)
    assert [key for key, made in before.items() if made] == [("base", "ann"), ("free", "ann"), ("tuned", "ann")]
    assert cells_of(named["float32"], folder) == before
    assert not any(cells_of(named["bfloat16"], folder).values())

    monkeypatch.setattr(device, "cpu_computes_bfloat16", lambda: True)
    assert not any(cells_of(study, folder).values())
    assert cells_of(named["float32"], folder) == before
    marks = [[cell.mark for cell in cells_in(path, folder)] for path in (study, named["bfloat16"])]
    assert marks[0] == marks[1]
    result = run("evaluate", study, "-o", folder, "--limit", 1)
    assert result.exit_code == 9 and "precision" in result.stderr
    _, entries, _, unfinished = comparison_of(folder)
    assert {entry.method for entry in entries} == {"tuned", "free"} and unfinished == 2


def test_new_weights_of_a_judge_make_it_judge_again(tmp_path: Path) -> None:
    judges = tmp_path / "judges"
    shutil.copytree(preset_folder() / "faceworld" / "judges", judges)
    source = study_of(tmp_path, metrics={"faceworld": {"folder": str(judges)}}, outputs={}, pairs=None)
    source["methods"] = {"base": {"kind": "base"}}
    study = write(tmp_path, source)
    ok("evaluate", study, "-o", tmp_path / "run")
    before = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]
    for file in judges.glob("identities*.safetensors"):
        tensors = safetensors.torch.load_file(file)
        safetensors.torch.save_file({name: tensor * 0.9 for name, tensor in tensors.items()}, file)
    ok("evaluate", study, "-o", tmp_path / "run")
    after = json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]
    assert [row["scores"]["identity"] for row in before] != [row["scores"]["identity"] for row in after]
    assert [row["scores"]["adherence"] for row in before] == [row["scores"]["adherence"] for row in after]

    shutil.rmtree(judges)
    result = run("evaluate", study, "-o", tmp_path / "run")
    assert result.exit_code == 8 and "judges" in result.stderr
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]) == 6


def test_a_judge_that_breaks_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = study_of(tmp_path, methods={"base": {"kind": "base"}}, outputs={}, pairs=None)

    def explode(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(Jury, "_judge", explode)
    assert run("evaluate", write(tmp_path, source), "-o", tmp_path / "run").exit_code != 0
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["pictures"]) == 6
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_sheet_has_a_column_for_every_prompt(tmp_path: Path) -> None:
    """Methods that draw other prompts stand in it with blanks."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    source = {"preset": "tiny-random", "prompts": ["S* one", "S* two"], "methods": {"a": {}, "b": {}}}
    source["outputs"] = {"sheet": {"title": "S", "kind": "sheet"}}
    study = build_study(source, "s", tmp_path)
    rows = [
        {"method": method, "subject": "ann", "prompt": prompt, "reconstruction": False, "file": "red.png"}
        for method, prompt in (("a", "S* two"), ("b", "S* one"), ("b", "S* two"))
    ]
    photos = {name: Image.new("RGB", (8, 8), colour) for name, colour in (("ann", "blue"), ("bob", "lime"))}
    sheet, prompts = sheet_of(study, study.outputs["sheet"], rows, tmp_path, photos)
    assert prompts == ["S* one", "S* two"]
    pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert [(pixels == colour).all(1).sum() // 96**2 for colour in ((255, 0, 0), (0, 0, 255), (0, 255, 0))] == [3, 1, 0]
    assert sheet_of(study, Figure("S", "sheet", subject=1), rows, tmp_path, photos) is None, "bob has no pictures"
    study = build_study({**source, "methods": {"a": {"kind": "two"}, "b": {}}}, "s", tmp_path)
    sheet, _ = sheet_of(study, study.outputs["sheet"], rows, tmp_path, photos)
    assert (np.asarray(sheet.convert("RGB")).reshape(-1, 3) == (0, 255, 0)).all(1).sum() == 96**2, "bob is in them too"


def test_what_a_study_says_is_no_html(tmp_path: Path) -> None:
    source = {"preset": "tiny-random", "prompts": ["S*"], "methods": {"<i>a": {}}, "description": "<script>1 & 2"}
    study = build_study({**source, "outputs": {"t": {"title": "<b>T"}}}, "<u>s", tmp_path)
    row = {"method": "<i>a", "subject": "ann", "reconstruction": False, "scores": {"<s>x|y": 1.0}}
    record = {"missing": {"clip": "<p>no"}, "failed": [{"method": "<i>a", "subject": "ann", "error": "<em>"}]}
    assert write_report(tmp_path, study, [row], record, {}) == []
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "tables.md").read_text()
    for said in ("<script>", "<i>", "<b>", "<u>", "<s>", "<p>no", "<em>"):
        assert said not in page and said.replace("<", "&lt;").replace(">", "&gt;") in page
        assert said in text
    assert "1 &amp; 2" in page and "| <s>x/y |" in text, "a bar would end the cell"


def test_a_difference_is_taken_subject_by_subject() -> None:
    rows = [
        {"method": method, "subject": str(subject), "reconstruction": False, "scores": {"x": subject + more}}
        for subject in range(9)
        for method, more in (("a", 0.0), ("b", 0.25))
    ]
    rows.append({"method": "b", "subject": "alone", "reconstruction": False, "scores": {"x": 99.0}})
    assert difference(rows, "b", "a", "x") == (0.25, 0.25, 0.25)
    study = build_study({"preset": "tiny-random", "prompts": ["S*"], "methods": {"a": {}, "b": {}}}, "s", Path())
    head, body = table_of(study, Figure("T", against="a"), rows)
    assert head[3:] == ["x", "less that of a"]
    unscored = {"method": "b", "subject": "unscored", "reconstruction": False, "scores": {"x": None}}
    assert table_of(study, Figure("T"), [*rows, unscored])[0][3:] == ["x (of 10)"], "b has 11 subjects"
    assert body[0][4] == "" and body[1][4] == "+0.250 [+0.250, +0.250]"


def test_intervals_over_few_subjects_are_said_to_be_too_narrow(tmp_path: Path) -> None:
    """Those of a column too that few of many subjects have a score in."""
    rows = [
        {"method": "a", "subject": str(n), "reconstruction": False, "scores": {"x": 1.0, "y": 1.0 if n < 7 else None}}
        for n in range(8)
    ]
    for columns, few in ((["x"], False), (["x", "y"], True)):
        source = {"preset": "tiny-random", "prompts": ["S*"], "methods": {"a": {}, "not drawn yet": {}}}
        source["outputs"] = {"t": {"title": "T", "columns": columns}}
        write_report(tmp_path, build_study(source, "s", tmp_path), rows, {"missing": {}, "failed": []}, {})
        assert ("fewer than 8 subjects" in (tmp_path / "tables.md").read_text()) is few


def test_the_quick_study_has_something_to_compare() -> None:
    study = read_study("faceworld-quick")
    assert study.pairs is not None
    methods = {method.name: method for method in study.methods}
    compared = [methods[name] for name in (study.pairs.ours, *study.pairs.others)]
    drawn_by_each = [set(study.jobs(method, 0, "a photo of S*")) for method in compared]
    assert len(compared) == 2 and drawn_by_each[0] == drawn_by_each[1]
    pairs = sum(len(list(study.jobs(compared[0], n, "S*"))) - 1 for n in range(len(subjects_of(study))))
    assert study.pairs.count == pairs, "all of them, without reconstructions"


def test_shipped_studies_make_sense() -> None:
    assert len(shipped_studies()) >= 5
    for name in shipped_studies():
        study = read_study(name)
        device = torch.device("cpu")
        assert all(make_metrics(key, options, device) for key, options in study.metrics.items()), name
        if name.startswith("faceworld"):
            assert len(subjects_of(study)) >= 4
            people = range(len(subjects_of(study)))
            covered = {text for n in people for text, _ in study.jobs(study.methods[0], n, "a photo of S*")}
            assert covered == {prompt.text for prompt in study.prompts} | (
                {"a photo of S*"} if study.counts.reconstructions else set()
            )
            for prompt in study.prompts:
                assert prompt.asks and all(value in CLASSES[key] for key, value in prompt.asks.items())
            words = {word for n in range(24) for word in subjects_of(study)[n % 4].description.split()}
            assert words <= set(vocabulary())


def test_a_table_is_of_means_over_subjects() -> None:
    source = {"preset": "tiny-random", "prompts": ["S*"], "methods": {"a": {}, "empty": {}}}
    study = build_study(source, "s", Path())
    rows = [
        {"method": "a", "subject": subject, "reconstruction": reconstruction, "scores": {"x": value}}
        for subject, values in {"ann": [0.0] * 50, "bob": [1.0, None]}.items()
        for value in values
        for reconstruction in (False, True)
    ]
    scores = summarise(rows, "a", ["x", RECONSTRUCTION + "x"])["scores"]
    assert tuple(scores["x"]) == (0.5, 0.0, 1.0) == tuple(scores[RECONSTRUCTION + "x"])
    assert math.isnan(summarise(rows, "empty", ["x"])["scores"]["x"].mean)
    head, body = table_of(study, Figure("All methods"), rows)
    assert head == ["method", "subjects", "pictures", "x", "reconstruction: x"]
    assert render("table.md", head=head, body=body).splitlines()[2:] == [
        "| a | 2 | 52 | 0.500 [0.000, 1.000] | 0.500 [0.000, 1.000] |",
        "| empty | 0 | 0 |  |  |",
    ]
