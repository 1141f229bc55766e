"""Several processes of one command: how cells are shared out, and what the processes tell one another."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from profusion_cli.errors import DeviceError, InputError, OutputError
from profusion_cli.evaluation.cells.sharing import share_out, units_of, work_of
from profusion_cli.evaluation.folder import slug
from profusion_cli.evaluation.runner import Run
from profusion_cli.evaluation.study.reading import read_study
from profusion_cli.files import write_json
from profusion_cli.launcher import VARIABLES, process_count
from profusion_cli.runtime.processes import Processes, launched
from tests.conftest import ok, run
from tests.test_evaluate import QUICK, study_of, write

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_all_processes_have_about_as_much_to_do(count: int) -> None:
    chance = random.Random(count)
    for pieces in (0, 1, 2, 5, 40):
        works = [chance.choice([0, 1, 5, 100]) * chance.random() for _ in range(pieces)]
        ranks = share_out(works, count)
        assert len(ranks) == pieces and ranks == sorted(ranks) and set(ranks) <= set(range(count))
        for rank in range(count):
            own = sum(work for work, to in zip(works, ranks, strict=True) if to == rank)
            assert own <= sum(works) / count + max(works, default=0) + 1e-9
    assert share_out([1.0] * (2 * count), count) == sorted([*range(count)] * 2)


def test_cells_that_share_anything_stay_together() -> None:
    cells = [SimpleNamespace(number=number, names=names.split()) for number, names in [(1, ""), (0, "a b"), (1, "e f")]]
    cells += [SimpleNamespace(number=0, names=names.split()) for names in ("c d", "", "b c", "a")]
    units = units_of(cells, lambda cell: cell.names)
    assert [[cells.index(cell) for cell in unit] for unit in units] == [[4], [1, 3, 5, 6], [0], [2]]


def test_a_study_is_shared_out_whole(tmp_path: Path) -> None:
    """Every cell once; and those that draw from one bundle, or are tuned on the same views, in one process."""
    source = study_of(tmp_path, outputs={}, pairs=None)
    source["methods"] |= {"views": {"sweep": {"finetune.steps": [1, 2]}}, "baseline": {"finetune.method": "dreambooth"}}
    made = Run(tmp_path / "run", read_study(str(write(tmp_path, source))))
    cells = made.cells(made.study.methods)
    units = units_of(cells, made.bundles.names_of)
    assert sorted(cell.folder for unit in units for cell in unit) == sorted(cell.folder for cell in cells)
    families = [sorted({cell.method.family for cell in unit}) for unit in units if unit[0].subject.name == "ann"]
    assert sorted(families) == [["base"], ["baseline"], ["both", "tuned"], ["free"], ["inverted"], ["views"]]
    ranks = share_out([work_of(unit) for unit in units], 2)
    assert {(unit[0].subject.name, rank) for unit, rank in zip(units, ranks, strict=True)} == {("ann", 0), ("bob", 1)}


def told_by(count: int, *rounds: Sequence[Any]) -> list[list[list[Any]]]:
    """What each of the processes hears, round by round, of what all of them tell."""
    store = torch.distributed.HashStore()

    def work(rank: int) -> list[list[Any]]:
        processes = Processes(store, rank, count)
        return [processes.gather(told[rank]) for told in rounds]

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_every_process_hears_what_all_tell() -> None:
    error = InputError("no", "yes")
    first, second = ["a", {"b": 1}, None], [1, error, 3]
    for heard in told_by(3, first, second):
        assert heard[0] == first
        assert (heard[1][1].message, heard[1][1].hint, type(heard[1][1])) == ("no", "yes", InputError)
    with pytest.raises(InputError, match="no"):
        Processes().agree(error)


def test_the_end_of_the_launcher_is_told() -> None:
    server = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    store = torch.distributed.TCPStore("localhost", server.port, timeout=timedelta(seconds=5))
    del server
    with pytest.raises(DeviceError, match="Another process of this run has ended"):
        Processes(store, 0, 2).gather(None)


def test_each_process_is_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    with launched(torch.device("cpu")) as processes:
        assert not any(name in os.environ for name in VARIABLES) and processes.gather(3) == [3]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert process_count() == 2
    with pytest.raises(DeviceError, match="cannot find one another"), launched(torch.device("cpu")):
        pass
    assert run("evaluate", "--pairs", "run").exit_code == 2


class Other(Processes):
    """The first of two processes; what the second tells is given, round by round, or else the same."""

    def __init__(self, *told: Any) -> None:
        super().__init__(None, 0, 2)
        self.told = list(told)

    def gather(self, own: Any) -> list[Any]:
        other = self.told.pop(0)
        return [own, own if other is ... else other]


FAILED = {"method": "base", "subject": "bob", "error": "no bob", "hint": "", "exit_code": 5}


def test_the_first_process_tells_what_the_others_found(tmp_path: Path) -> None:
    study = read_study(str(write(tmp_path, study_of(tmp_path, outputs={}, pairs=None))))
    full = OutputError("no space left", "")

    def reported(*told: Any) -> dict[str, Any]:
        run_ = Run(tmp_path / "run", study, processes=Other(*told))
        with run_.open(go_on=True):
            run_.make_and_report([], {})
        return json.loads((tmp_path / "run" / "results.json").read_text())

    told = reported(None, ..., ([FAILED], {"CLIP RN50": "not here"}, {}, None))
    assert told["failed"] == [FAILED] and told["missing"] == {"CLIP RN50": "not here"}
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(OutputError, match="no space left"):
        reported(None, ..., ([], {}, {}, full))
    assert (tmp_path / "run" / "results.json").exists()
    with pytest.raises(InputError, match="do not see the same run"):
        reported(None, "another folder")
    with pytest.raises(OutputError, match="no space left"):
        reported(full)


def test_scores_by_weights_that_another_process_has_fetched_count(tmp_path: Path) -> None:
    """This one judged nothing by them, and has seen only that they were not there."""
    metrics = {"clip": {"models": ["RN50"]}}
    study = read_study(str(write(tmp_path, study_of(tmp_path, metrics=metrics, outputs={}, pairs=None))))
    made = Run(tmp_path / "run", study)
    cell = made.cells(made.study.methods)[0]
    record = {"cell": cell.mark, "mark": "fetched", "seconds": 1.0, "scores": [{"CLIP RN50": 0.5}]}
    write_json(cell.folder / f"scores-{slug('CLIP RN50')}.json", record)
    assert made.jury.scores(cell, "CLIP RN50") is None
    made.jury.hear({}, {"CLIP RN50": "fetched"})
    assert made.jury.scores(cell, "CLIP RN50") == record["scores"]


@pytest.mark.slow
def test_two_processes_make_the_tables_of_one(tmp_path: Path) -> None:
    """All with one thread, by which sums are cut up; one of the methods has a PromptNet of its own."""
    source = study_of(tmp_path, settings={**QUICK, "dtype": "float32", "pretrain.steps": 1}, pretrain_on=2)
    once = {"prompts": source["prompts"][:1], "reconstructions": 0}
    source |= {**once, "outputs": {"table": {"title": "All"}}, "pairs": None}
    own = {"finetune.steps": 0, "pretrain": {"batch_size": 2}}
    source["methods"] = {
        "own": own,
        "both": {"kind": "two", "share": 0.5, "augment": False},
        "tuned": {"augment": False},
    }
    study, threads = write(tmp_path, source), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ok("evaluate", study, "-o", tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "profusion_cli", "evaluate", str(study), "-o", str(tmp_path / "two"), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_processes"] == 2, "one object: only the first process prints"
    assert "2 processes share 6 cells; this one has 3 of them." in done.stderr and "process 2" not in done.stderr
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert one["pictures"] == two["pictures"] and len(one["pictures"]) == 6 and one["failed"] == []
    assert (tmp_path / "one" / "tables.md").read_text() == (tmp_path / "two" / "tables.md").read_text()
    for row in one["pictures"]:
        assert (tmp_path / "one" / row["file"]).read_bytes() == (tmp_path / "two" / row["file"]).read_bytes()
    left = {path.name for path in (tmp_path / "two").iterdir()}
    assert left == {path.name for path in (tmp_path / "one").iterdir()} and "work" not in left
