"""`bench`: what it measures, and what it makes of that."""

from __future__ import annotations

import json

import pytest
import torch

from profusion_cli.bench.contenders import Way
from profusion_cli.bench.measure import Measured, matrix_speed, measured, operations
from profusion_cli.bench.report import _picture, _turned, lines_of
from profusion_cli.plans import Cost
from tests.conftest import ok, run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def record() -> dict:
    done = ok("bench", "--preset", "tiny-random", "--rounds", 2, "--limit-steps", 2, "--json", "-q")
    return json.loads(done.stdout)


def test_everything_is_measured(record):
    pictures, parts = record["pictures"], record["evaluations"]
    assert [row["steps"] for row in pictures.values()] == [50, 10, 10, 10, 10]
    assert all(row["steps_run"] == 2 for row in pictures.values())
    assert set(parts) == {"UNet", "PromptNet", "text encoder", "VAE, decoding", "VAE, encoding"}
    for row in (*pictures.values(), *parts.values(), record["fine_tuning_step"]):
        assert 0 < row["least"] <= row["seconds"] <= row["most"]
    assert record["random"] is True
    assert record["compiled"] is False
    assert record["matrix_speed"] > 0


def test_units_are_counted_on_this_base(record):
    """A step of diffusers' pipeline is two of the UNet's; of plain guidance, PromptNet's and the encoder's too."""
    parts, pictures = record["evaluations"], record["pictures"]
    assert parts["UNet"]["units"] == 1
    assert all(row["operations"] > 0 for row in parts.values())
    learned = parts["PromptNet"]["units"] + parts["text encoder"]["units"]
    pipeline, plain, exact, *_ = pictures.values()
    assert pipeline["units"] == 100
    assert plain["units"] == pytest.approx(10 * (2 + learned))
    assert exact["units"] == pytest.approx(10 * (5 + 2 * learned))


def test_the_table_has_a_row_for_each(record):
    lines = list(lines_of(record))
    assert "random weights" in lines[0]
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert {*record["pictures"], *record["evaluations"], "2 pictures"} <= set(names)
    assert all(
        line.count("|") == 9 for line in lines if any(line.startswith(f"| {name} ") for name in record["pictures"])
    )
    assert not any("fine-tuning" in line for line in lines_of({**record, "fine_tuning_step": None}))


def test_a_cut_picture_is_told_whole_by_what_it_costs():
    way = Way("some", 50, lambda steps: Cost(2 * steps, steps, 0), lambda steps: None)
    row = _picture(way, 5, [Measured(1.0, 7), Measured(3.0, 9), Measured(2.0, None)], [0.5, 0.0])
    assert (row["seconds"], row["least"], row["most"]) == (20.0, 10.0, 30.0)
    assert (row["units"], row["peak"]) == (125.0, 9)


def test_operations_are_those_of_the_products():
    one, other = torch.ones(3, 5), torch.ones(5, 7)
    assert operations(lambda: one @ other) == 2 * 3 * 5 * 7
    query = torch.ones(1, 2, 64, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert operations(lambda: attention(query, query, query)) == 2 * 2 * 64 * 64 * 8 * 2


def test_what_runs_is_timed_and_its_memory_seen():
    seen = measured(lambda: torch.ones(50_000_000).sum(), CPU)
    assert seen.seconds > 0
    assert seen.peak is None or seen.peak > 200_000_000
    assert matrix_speed(CPU, torch.float32) > 1e6


def test_none_always_comes_behind_the_same():
    assert [_turned([1, 2, 3], by) for by in range(4)] == [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]


def test_mistakes_are_told():
    assert run("bench", "--rounds", 0).exit_code == 2
    assert run("bench", "--preset", "no-such").exit_code == 3
    assert run("bench", "--preset", "tiny-random", "--set", "finetune.method=dreambooth").exit_code == 2
    assert run("bench", "--random", "--preset", "tiny-random").exit_code == 2
    dry = ok("bench", "--random", "--dry-run")
    assert "resolution: 512" in dry.stdout
    assert "size: sd2" in dry.stdout
    assert "weights: untrained" in dry.stdout
