"""Kernel distances of sets of pictures: the estimator without a model, and what a run makes of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from profusion_cli.errors import ConfigError
from profusion_cli.evaluation.cells import judging
from profusion_cli.evaluation.cells.judging import Jury
from profusion_cli.evaluation.dino import Dino
from profusion_cli.evaluation.report.page import write_report
from profusion_cli.evaluation.report.tables import shown
from profusion_cli.evaluation.runner import Run
from profusion_cli.evaluation.statistics import FeatureSet, Interval, kernel_difference, kernel_distance
from profusion_cli.evaluation.study.reading import read_study
from profusion_cli.evaluation.study.subjects import subjects_of
from tests.conftest import draw_photo, ok, run
from tests.test_evaluate import study_of, write
from tests.test_metrics import write_dino

WIDTH = 16
Features = dict[str, np.ndarray]


def people(seed: int, count: int) -> np.ndarray:
    """What is of each person, which all of their pictures share."""
    return np.random.default_rng(seed).normal(size=(count, 1, WIDTH))


def pictures(seed: int, of: np.ndarray, each: int, shift: float = 0.0, name: str = "") -> Features:
    """Pictures of people, alike within each."""
    noise = np.random.default_rng([seed, each]).normal(size=(len(of), each, WIDTH))
    return {f"{name}{number}": person + shift + 0.5 * own for number, (person, own) in enumerate(zip(of, noise))}  # noqa: B905


def distance(x: Features, y: Features) -> Interval:
    return kernel_distance(FeatureSet(x), FeatureSet(y))


def by_loops(x: Features, y: Features) -> float:
    """The estimator as it is defined."""

    def term(one: Features, other: Features) -> float:
        pairs = [(a, b) for a in one for b in other if a != b]
        kernels = [np.mean([(u @ v / WIDTH + 1) ** 3 for u in one[a] for v in other[b]]) for a, b in pairs]
        return float(np.mean(kernels))

    return term(x, x) + term(y, y) - 2 * term(x, y)


def without(name: str, features: Features) -> Features:
    return {other: rows for other, rows in features.items() if other != name}


@pytest.mark.parametrize("shared", [0, 2, 4])
def test_the_distance_is_its_definition(shared: int) -> None:
    """Of which so many people are in both sets, with any number of pictures each."""
    x, y = pictures(0, people(0, 4), 3), pictures(1, people(1, 5), 2)
    x["1"], y["2"] = x["1"][:1], y["2"][:1]
    y = {name if int(name) < shared else f"real {name}": rows for name, rows in y.items()}
    found = distance(x, y)
    assert found.mean == pytest.approx(by_loops(x, y), rel=1e-12)
    variance = 0.0
    for names in (list(x), [name for name in y if name not in x]):
        left = [by_loops(without(name, x), without(name, y)) for name in names]
        variance += (len(left) - 1) * np.var(left)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * variance**0.5, rel=1e-9)
    turned = [{name: rows[::-1] for name, rows in reversed(of.items())} for of in (x, y)]
    assert distance(*turned) == pytest.approx(found, rel=1e-12)


def test_many_pictures_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pictures(0, people(0, 7), 3), pictures(1, people(1, 7), 2)
    whole = distance(x, y)
    monkeypatch.setattr("profusion_cli.evaluation.statistics.BLOCK", 4)
    assert distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_pictures_of_one_distribution_have_no_distance_and_shifts_are_ordered() -> None:
    """In expectation, although the pictures of a person are alike, and are of the same people as the true ones."""
    for same in (True, False):
        found = []
        for seed in range(200):
            ours = people(seed, 8)
            theirs = ours if same else people(seed + 1000, 12)
            found.append(distance(pictures(seed, ours, 2), pictures(seed, theirs, 3, name="" if same else "real ")))
        means = np.array([one.mean for one in found])
        assert abs(means.mean()) < 3 * means.std() / len(means) ** 0.5
        assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.93
    ours = people(0, 24)
    shifts = [distance(pictures(0, ours, 2, shift), pictures(1, ours, 3)) for shift in (0, 0.1, 0.2, 0.4, 0.8, 1.6)]
    assert all(one.mean < other.mean for one, other in pairwise(shifts))
    assert shifts[0].low < 0 < shifts[0].high and shifts[-1].low > 0


def test_pairs_of_one_person_would_make_a_distance_where_there_is_none() -> None:
    """As where every picture is taken for another person's."""
    found = []
    for seed in range(60):
        alone = {
            f"{name} {number}": rows[[number]]
            for name, rows in pictures(seed, people(seed, 8), 2).items()
            for number in range(2)
        }
        found.append(distance(alone, pictures(seed, people(seed + 1000, 12), 3, name="real ")).mean)
    assert np.mean(found) > 3 * np.std(found) / len(found) ** 0.5


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of a distance, and of the difference of two by the same people; the truth is from many of them."""
    many = people(9, 800)
    true = {shift: distance(pictures(8, many, 2, shift), pictures(9, many, 2)).mean for shift in (0.3, 0.6)}
    held, differs, wide = [], [], []
    for seed in range(120):
        ours = people(seed, 24)
        near, far = (FeatureSet(pictures(seed, ours, 2, shift)) for shift in (0.3, 0.6))
        real = FeatureSet(pictures(seed, ours, 4))
        one, other = kernel_distance(near, real), kernel_distance(far, real)
        less = kernel_difference((far, real), (near, real))
        assert less.mean == pytest.approx(other.mean - one.mean)
        held.append(one.low <= true[0.3] <= one.high)
        differs.append(less.low <= true[0.6] - true[0.3] <= less.high)
        wide.append((less.high - less.low) / np.hypot(one.high - one.low, other.high - other.low))
    assert 0.88 < np.mean(held) <= 0.99 and 0.88 < np.mean(differs) <= 0.99
    assert np.mean(wide) < 0.8, "the same people: more is known than of two sets of different ones"


def test_what_too_few_people_cannot_tell_is_not_told() -> None:
    x, y = pictures(0, people(0, 5), 2), pictures(1, people(0, 5), 2)
    few = dict(list(x.items())[:2])
    for one, other in ((few, y), (y, few), ({}, y), ({**few, "2": np.zeros((0, WIDTH))}, y)):
        assert np.isnan(distance(one, other)).all()
    real = FeatureSet(y)
    assert np.isnan(kernel_difference((FeatureSet(x), real), (FeatureSet(few), real))).all()
    rest = without("0", x)
    less = kernel_difference((FeatureSet(x), real), (FeatureSet({**rest, "9": 5 + x["0"]}), real))
    assert less == (0, 0, 0), "by the people that both have"


# --- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two methods on three people with held-out photos; the study lies beside it."""
    folder = tmp_path_factory.mktemp("distances")
    colours = ("tan", "brown", "pink", "peru")
    for number, name in enumerate(("ann", "bob", "cy")):
        for file, colour in ((f"{name}.png", colours[number]), (f"{name}/1.png", colours[number + 1])):
            (folder / "photos" / file).parent.mkdir(parents=True, exist_ok=True)
            draw_photo(folder / "photos" / file, colour)
    (folder / "real").mkdir()
    for number in range(4):
        draw_photo(folder / "real" / f"{number}.png", colours[number], (200 + 30 * number, 140))
    realism = {"folder": str(folder / "real"), "weights": str(write_dino(folder)), "models": ["DINOv2"]}
    source = study_of(folder, metrics={"faceworld": {}, "realism": realism}, pairs=None)
    source.pop("subjects")
    source["methods"] = {"one": {"kind": "base"}, "other": {"kind": "base", "seed": 1}}
    curve = {"kind": "curve", "title": "C", "x": "adherence", "y": "KID DINOv2"}
    source["outputs"] = {"table": {"title": "T", "against": "one"}, "curve": curve}
    write(folder, source)
    again(folder / "run")
    return folder / "run"


def again(folder: Path, *more: str) -> str:
    study = folder.parent / "study.yaml"
    ok("evaluate", study, "-o", folder, "--photos", folder.parent / "photos", *more)
    return (folder / "tables.md").read_text()


def test_a_run_tells_distances_of_all_pictures_of_a_method(judged: Path) -> None:
    """From features beside the scores; scores and tables are of the pictures that the run drew."""
    results = (judged / "results.json").read_text()
    assert len(results) < 30_000 and "KID" not in json.dumps(json.loads(results)["pictures"])
    dino = Dino("DINOv2", str(judged.parent), torch.device("cpu"))
    drawn: dict[str, Features] = {}
    for row in json.loads(results)["pictures"]:
        if not row["reconstruction"]:
            with Image.open(judged / row["file"]) as picture:
                features = dino.encode([picture.convert("RGB")])
            of_method = drawn.setdefault(row["method"], {})
            of_method[row["subject"]] = np.concatenate([of_method.get(row["subject"], features[:0]), features])
    assert {name: [len(rows) for rows in of.values()] for name, of in drawn.items()} == {
        name: [2, 2, 2] for name in ("one", "other")
    }
    real = {}
    for file in (judged.parent / "real").iterdir():
        with Image.open(file) as photo:
            left = (photo.width - photo.height) // 2
            real[file.stem] = dino.encode([photo.crop((left, 0, left + photo.height, photo.height))])
    head, _, *lines = [line.split(" | ") for line in (judged / "tables.md").read_text().split("\n") if line[:1] == "|"]
    table = {line[0].strip("| "): dict(zip(head, line, strict=True)) for line in lines[:2]}
    one, other = (FeatureSet(drawn[name]) for name in ("one", "other"))
    true = FeatureSet(real)
    assert table["other"]["KID DINOv2"] == shown(kernel_distance(other, true), 4) != ""
    less = shown(kernel_difference((other, true), (one, true)), 4, "+")
    assert lines[1][head.index("KID DINOv2") + 1].strip("| ") == less
    assert table["one"]["KID"].count(",") == 1, "the face world's, from held-out photos"
    page = (judged / "report.html").read_text()
    assert "KID DINOv2" in (judged / "curve.svg").read_text() and "KID, KID DINOv2: the kernel distance" in page


def test_what_is_judged_is_kept_until_what_it_depends_on_changes(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []
    judge, read = Jury._judge, judging.features_of_photos
    monkeypatch.setattr(Jury, "_judge", lambda *of: (did.append(of[1].subject.name), judge(*of))[1])
    monkeypatch.setattr(judging, "features_of_photos", lambda *of: (did.append("photographs"), read(*of))[1])
    before = again(judged)
    assert did == []

    kept = sorted(judged.glob("cells/other-*/bob-*/features-*.safetensors"))
    kept[0].unlink()
    kept[1].write_bytes(b"damaged")
    assert again(judged) == before and did == ["bob", "bob"], "as in a folder of a version that kept none"

    did.clear()
    draw_photo(judged.parent / "real" / "0.png", "lime")
    after = again(judged)
    assert did == ["ann", "bob", "cy"] * 2 + ["photographs"] and after != before

    did.clear()
    pictures_before = {path: path.stat().st_mtime_ns for path in judged.rglob("cells/*/*/*.png")}
    draw_photo(judged.parent / "photos" / "bob" / "1.png", "lime")
    again(judged)
    assert did == ["bob"] * 4, "by both metrics"
    assert pictures_before == {path: path.stat().st_mtime_ns for path in judged.rglob("cells/*/*/*.png")}


def test_held_out_photos_are_of_a_folder_or_named_and_what_is_tuned_on_is_told(judged: Path) -> None:
    study = read_study(str(judged.parent / "study.yaml"), [str(judged.parent / "photos")])
    found = subjects_of(study)
    assert [[path.name for path in one.held_out] for one in found] == [["1.png"]] * 3
    told = "is measured against the tuned photo itself"
    assert told not in (judged / "tables.md").read_text()
    (judged.parent / "photos" / "dan").mkdir()
    draw_photo(judged.parent / "photos" / "dan.png")
    with pytest.raises(Exception, match="dan' holds no photos"):
        read_study(str(judged.parent / "study.yaml"), [str(judged.parent / "photos")])
    (judged.parent / "photos" / "dan").rmdir()
    flat = read_study(str(judged.parent / "study.yaml"), [str(judged.parent / "photos")])
    assert "held_out" not in flat.source["subjects"]["photos"][-1], "as runs of earlier versions say it"
    record: dict = {"missing": {}, "failed": []}
    write_report(judged.parent / "flat", flat, [], record, {})
    assert f"Identity of dan {told}" in (judged.parent / "flat" / "tables.md").read_text()
    write_report(judged.parent / "flat", replace(flat, metrics={"clip": {}}), [], record, {})
    assert told not in (judged.parent / "flat" / "tables.md").read_text()
    (judged.parent / "photos" / "dan.png").unlink()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"subjects": {"photos": [{"file": "ann.png", "held_out": ["no.png"]}]}}, "no.png"),
        ({"subjects": {"photos": [{"file": "ann.png", "held_out": ["ann.png"]}]}}, "is what the subject is tuned on"),
        ({"subjects": {"photos": [{"file": "ann.png", "held_out": ["copy.png"]}]}}, "is what the subject is tuned on"),
        ({"subjects": {"photos": [{"file": "ann.png", "held_out": ["b.png", "b2.png"]}]}}, "are the same photo"),
        ({"subjects": {"photos": [{"file": "ann.png", "held_out": ["b.png", "b.png"]}]}}, "are the same photo"),
        ({"outputs": {"t": {"title": "T", "columns": ["reconstruction: KID"]}}}, "Name 'KID'"),
        ({"metrics": {"realism": {}}, "outputs": {}}, "folder of photographs"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict, said: str, tmp_path: Path) -> None:
    study = write(tmp_path, study_of(tmp_path, **changes))
    for copy, of in (("copy.png", "ann.png"), ("b.png", "bob.png"), ("b2.png", "bob.png")):
        shutil.copy(tmp_path / of, tmp_path / copy)
    with pytest.raises(ConfigError) as caught:
        Run(tmp_path / "run", read_study(str(study)))
    assert said in f"{caught.value.message} {caught.value.hint}"


def test_a_damaged_held_out_photo_stops_a_run_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no picture")
    source = study_of(tmp_path, subjects={"photos": [{"file": "ann.png", "held_out": ["no.png"]}]})
    result = run("evaluate", write(tmp_path, source), "-o", tmp_path / "run")
    assert result.exit_code == 5 and "no.png" in result.stderr and not (tmp_path / "run").exists()
