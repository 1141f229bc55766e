"""`profusion compress`: the nearest changes of low rank, and what they do to the predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from profusion_cli.bundle import read_bundle
from profusion_cli.bundle.kinds import ADAPTERS_FILE, PROMPTNET_FILE, UNET_FILE, VIEWS_FILE, WORD_FILE
from profusion_cli.jobs.parents import STORE
from profusion_cli.jobs.remembered import path_of
from profusion_cli.runtime.changes import LowRank, whole
from profusion_cli.runtime.compression import OVERSAMPLING, cut, nearest, relative_error
from tests.conftest import ok, run

TUNED = ("--preset", "tiny-random", "--no-augment", "--steps", 2, "--lr", "1e-3")


@pytest.fixture(scope="module")
def parent(work: Path, photo: Path) -> Path:
    target = work / "before.pfz"
    ok("pretrain", photo, "--preset", "tiny-random", "--steps", 1, "--seed", 3, "-o", target)
    return target


@pytest.fixture(scope="module")
def tuned(work: Path, photo: Path, parent: Path) -> Path:
    """A subject of whole weights, tuned from the parent."""
    target = work / "tuned.pfz"
    ok("finetune", photo, "--promptnet", parent, *TUNED, "-o", target)
    return target


@pytest.mark.parametrize("shape", [(12, 9), (7, 5, 3, 3), (200, 300), (90, 20, 3, 3)], ids=str)
def test_the_nearest_change_is_that_of_the_largest_singular_values(shape):
    """Exactly where the matrix is small, and nearly where the decomposition is a randomised one."""
    generator, rank = torch.Generator().manual_seed(0), 4
    matrix = torch.randn(shape, generator=generator)
    smooth = matrix.flatten(1) @ torch.diag(0.9 ** torch.arange(matrix[0].numel()))
    matrix = smooth.reshape(shape)
    left, values, right = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    found = nearest(matrix, rank)
    assert found.shape == matrix.shape and found.down.shape[0] == rank
    off = values[rank:].norm()
    ours = (found.whole() - matrix).norm()
    assert ours <= off * 1.001
    if 2 * (rank + OVERSAMPLING) >= min(matrix.flatten(1).shape):
        torch.testing.assert_close(found.whole().flatten(1), best, rtol=1e-4, atol=1e-4)


def test_a_change_is_cut_where_that_is_smaller():
    change = LowRank(torch.randn(6, 8), torch.randn(8, 6))
    assert isinstance(cut(change, 2), LowRank)
    torch.testing.assert_close(cut(change, 6), change.whole())
    vector = torch.randn(8)
    assert cut(vector, 1) is vector


def test_the_error_is_relative():
    exact = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)


def test_a_subject_becomes_smaller_and_says_what_that_costs(tuned, parent, tmp_path):
    path_of(STORE).unlink(missing_ok=True)
    errors = {}
    for rank in (1, 4, 16):
        target = tmp_path / f"{rank}.pfz"
        told = json.loads(ok("compress", tuned, "--rank", rank, "--promptnet", parent, "-o", target, "--json").stdout)
        bundle = read_bundle(target.read_bytes(), target.name)
        assert set(bundle.files) == {VIEWS_FILE, ADAPTERS_FILE}
        assert told["size"] == bundle.size < told["size_before"] == tuned.stat().st_size
        assert bundle.manifest["compressed"] == {"rank": rank, "error": told["error"]}
        assert read_bundle(tuned.read_bytes(), "x").sha256 in bundle.manifest["parents"]
        errors[rank] = told["error"]
    assert errors[1] > errors[4] > errors[16] > 0
    ok("sample", tmp_path / "4.pfz", "S* in style", "--steps", 3, "-o", tmp_path / "x.png")
    between = (errors[4] + errors[16]) / 2
    arguments = ("compress", tuned, "--promptnet", parent, "--error", between, "-o", tmp_path / "e.pfz", "--json")
    found = json.loads(ok(*arguments).stdout)
    assert 4 < found["rank"] <= 16 and found["error"] <= between
    once_more = (
        "compress",
        tuned,
        "--promptnet",
        parent,
        "--rank",
        found["rank"] - 1,
        "-o",
        tmp_path / "f.pfz",
        "--json",
    )
    assert json.loads(ok(*once_more).stdout)["error"] > between


def test_promptnet_may_stay_whole(tuned, tmp_path):
    target = tmp_path / "whole.pfz"
    ok("compress", tuned, "--rank", 4, "--self-contained", "-o", target)
    bundle = read_bundle(target.read_bytes(), target.name)
    assert {PROMPTNET_FILE, ADAPTERS_FILE} <= set(bundle.files) and UNET_FILE not in bundle.files
    ok("sample", target, "S* in style", "--steps", 3, "-o", tmp_path / "x.png")


def test_an_ordinary_words_unet_becomes_smaller(photo, tmp_path):
    whole_path, small = tmp_path / "booth.pfz", tmp_path / "small.pfz"
    options = ("--method", "dreambooth", "--set", "finetune.prior_pictures=0", "--set", "finetune.train=attention")
    ok("finetune", photo, "--preset", "tiny-random", *options, "--steps", 1, "-o", whole_path)
    ok("compress", whole_path, "--rank", 4, "-o", small)
    assert set(read_bundle(small.read_bytes(), "small.pfz").files) == {WORD_FILE, ADAPTERS_FILE}
    ok("sample", small, "S* in style", "--steps", 3, "-o", tmp_path / "x.png")


def test_what_cannot_be_compressed_is_told(tuned, parent, photo, tmp_path):
    target = tmp_path / "x.pfz"
    both = run("compress", tuned, "--rank", 4, "--error", 0.1, "-o", target)
    assert both.exit_code == 2 and "--error" in both.stderr
    strict = run("compress", tuned, "--promptnet", parent, "--error", 0, "-o", target)
    assert strict.exit_code == 3 and "rank 256" in strict.stderr
    path_of(STORE).unlink(missing_ok=True)
    lost = run("compress", tuned, "--rank", 4, "-o", target)
    assert lost.exit_code == 8 and "--promptnet" in lost.stderr
    wrong = tmp_path / "wrong.pfz"
    ok("pretrain", photo, "--preset", "tiny-random", "--steps", 1, "--seed", 9, "-o", wrong)
    other = run("compress", tuned, "--rank", 4, "--promptnet", wrong, "-o", target)
    assert other.exit_code == 4 and "wrong.pfz" in other.stderr
    ok("compress", tuned, "--rank", 4, "--promptnet", parent, "-o", target)
    again = run("compress", target, "--rank", 2, "-o", tmp_path / "y.pfz")
    assert again.exit_code == 4 and "no whole changes" in again.stderr
    assert not (tmp_path / "y.pfz").exists()


def test_a_low_rank_change_is_whole_again():
    change = LowRank(torch.ones(2, 3), torch.ones(4, 2))
    assert torch.equal(whole(change), torch.full((4, 3), 2.0))
