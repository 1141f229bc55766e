"""`--deterministic`: the same bytes whatever the number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from profusion_cli.errors import DeviceError
from profusion_cli.files import sha256_of
from profusion_cli.presets import preset_folder
from profusion_cli.runtime.device import CUBLAS_WORKSPACE, repeatable
from tests.conftest import ok

FACES = preset_folder() / "faceworld" / "faces"


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CUBLAS_WORKSPACE, ":16:8")
        yield
    torch.set_num_threads(before)


def made(threads: int, target: Path, *arguments: object) -> str:
    """The SHA-256 of what a command writes."""
    torch.set_num_threads(threads)
    ok(*arguments, "--deterministic", "-o", target)
    assert torch.get_num_threads() == threads
    return sha256_of(target.read_bytes())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A subject of the face world, by the number of threads."""
    folder = tmp_path_factory.mktemp("tuned")
    command = ("finetune", FACES / "905.png", "--preset", "faceworld", "--steps", 1, "--batch-size", 2, "--no-augment")
    for threads in (1, 2):
        made(threads, folder / f"{threads}.pfz", *command)
    return {threads: folder / f"{threads}.pfz" for threads in (1, 2)}


def test_finetune_makes_the_same_bytes_whatever_the_threads(tuned):
    one, two = (sha256_of(tuned[threads].read_bytes()) for threads in (1, 2))
    assert one == two


def test_sample_draws_the_same_bytes_whatever_the_threads(tuned, tmp_path):
    command = ("sample", tuned[1], "S* on a beach", "--steps", 3)
    one, two = (made(threads, tmp_path / f"{threads}.png", *command) for threads in (1, 2))
    assert one == two


def test_interpolate_draws_the_same_bytes_whatever_the_threads(tuned, tmp_path):
    command = ("interpolate", tuned[1], tuned[1], "S* on a beach", "--frames", 2, "--steps", 2)
    one, two = (made(threads, tmp_path / f"{threads}.gif", *command) for threads in (1, 2))
    assert one == two


def test_torch_is_left_as_it_was():
    torch.set_num_threads(2)
    with repeatable(True):
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (2, False)
    with repeatable(False):
        assert torch.get_num_threads() == 2


def test_cuda_is_told_before_it_is_used_and_the_users_word_counts(monkeypatch):
    with repeatable(True):
        assert os.environ[CUBLAS_WORKSPACE] == ":16:8"
    monkeypatch.delenv(CUBLAS_WORKSPACE)
    with repeatable(True):
        assert os.environ[CUBLAS_WORKSPACE] == ":4096:8"


def test_what_has_no_deterministic_form_is_told_of():
    with pytest.raises(DeviceError, match="--deterministic") as caught, repeatable(True):
        raise RuntimeError("an_op does not have a deterministic implementation")
    assert "--device cpu" in caught.value.hint
    with pytest.raises(RuntimeError, match="something else"), repeatable(True):
        raise RuntimeError("something else")
