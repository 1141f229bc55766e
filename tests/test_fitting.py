"""The loop of every training: batches a step ahead, nothing that waits for the device, and compiled objectives."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from profusion_cli.config import FinetuneConfig
from profusion_cli.listener import Listener, hearing, who_hears
from profusion_cli.methods import METHODS
from profusion_cli.runtime import fitting, training
from profusion_cli.runtime.baselines import LearnedWord, WordBatch, finetune_word
from profusion_cli.runtime.fitting import Tensors, ahead
from profusion_cli.runtime.training import Tuned, finetune
from tests.conftest import ok, run
from tests.test_speed import WAITED_FOR
from tests.test_training import make_base, make_promptnet, make_views

CPU = torch.device("cpu")
DEVICE = torch.device("meta")  # any other than the CPU


@dataclass(frozen=True)
class Numbers(Tensors):
    """A batch of one number."""

    number: torch.Tensor


def numbers(step: int) -> Numbers:
    return Numbers(torch.tensor([step]))


# --- batches ---------------------------------------------------------------------------------------------------


def test_a_batch_is_prepared_while_the_step_before_it_is_taken():
    begun = [threading.Event() for _ in range(5)]

    def batches(step: int) -> Numbers:
        begun[step].set()
        return numbers(step)

    taken = []
    for step, batch in ahead(batches, range(1, 4), DEVICE):
        taken.append((step, int(batch.number)))
        if step < 3:
            assert begun[step + 1].wait(30)
        assert not begun[step + 2 if step < 3 else 4].is_set()
    assert taken == [(1, 1), (2, 2), (3, 3)]
    assert list(ahead(batches, range(3, 3), DEVICE)) == []


def test_a_batch_that_cannot_be_had_is_told_in_its_step():
    def batches(step: int) -> Numbers:
        if step == 2:
            raise OSError("gone")
        return numbers(step)

    prepared = ahead(batches, range(4), DEVICE)
    assert [next(prepared)[0], next(prepared)[0]] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(prepared)


def test_an_interrupted_step_ends_the_thread_too():
    def interrupted() -> None:
        prepared = ahead(numbers, range(4), DEVICE)
        try:
            next(prepared)
            raise KeyboardInterrupt
        finally:
            prepared.close()

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(threading.enumerate()) == before


def test_the_thread_tells_whom_its_caller_tells():
    heard = []

    def batches(step: int) -> Numbers:
        heard.append(who_hears())
        return numbers(step)

    listener = Listener()
    with hearing(listener):
        list(ahead(batches, range(2), DEVICE))
    assert heard == [listener, listener]


def test_no_thread_beside_the_steps_of_a_cpu():
    by: list[threading.Thread] = []

    def batches(step: int) -> Numbers:
        by.append(threading.current_thread())
        return numbers(step)

    assert [(step, int(batch.number)) for step, batch in ahead(batches, range(1, 4), CPU)] == [(1, 1), (2, 2), (3, 3)]
    assert by == [threading.current_thread()] * 3


def test_what_is_read_stays_on_the_cpu():
    batch = WordBatch(*(torch.zeros(2) for _ in range(5))).to(torch.device("meta"))
    assert (batch.prompts.device.type, batch.noise.device.type, batch.is_prior.device.type) == ("cpu", "meta", "meta")


# --- steps -----------------------------------------------------------------------------------------------------


def tuned_by(
    folder: Path,
    method: str,
    progress: Callable[[int, float], None] = lambda done, loss: None,
    compiled: bool = False,
    **settings: Any,
) -> Tuned:
    base = make_base(folder)
    config = FinetuneConfig(**{"steps": 2, "batch_size": 4, "learning_rate": 1e-3, **settings})
    end = ("a photo of S*", 0, progress, None, compiled)
    if method == "profusion":
        return finetune(base, make_promptnet(base), make_views(), config, *end)
    own = METHODS[method]["finetune"]
    config = replace(config, method=method, train=own["train"], prompts=tuple(own.get("prompts", ())), prior_weight=1.0)
    prior = make_views(3) if method == "dreambooth" else None
    word = LearnedWord.from_text(base.text, "person")
    return finetune_word(base, word, make_views(), prior, config, end[0], "a person", *end[1:])


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("profusion", {}),
        ("profusion", {"train": "lora", "gradient_accumulation": 2}),
        ("dreambooth", {}),
        ("textual-inversion", {}),
    ],
)
def test_a_step_waits_for_the_device_once(base_folder, monkeypatch, method, settings):
    """To read the loss and the norm of the gradients; see the test of sampling. The first step prepares."""
    seen: Counter[str] = Counter()
    tolist, take = torch.Tensor.tolist, fitting._try_step

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen[str(function)] += 1
            return function(*args, **(kwargs or {}))

    def read(tensor: torch.Tensor) -> list[float]:
        seen["read"] += 1
        return tolist(tensor)

    def watched(*arguments: Any) -> tuple[float, float]:
        seen.clear()
        with pytest.MonkeyPatch.context() as patch, Watched():
            patch.setattr(torch.Tensor, "tolist", read)
            return take(*arguments)

    monkeypatch.setattr(fitting, "_try_step", watched)
    tuned_by(base_folder, method, **settings)
    assert seen["aten.convolution.default"] > 0 and seen["read"] == 1
    waited = [name for name in WAITED_FOR for _ in range(seen[f"aten.{name}.default"])]
    assert waited == ([] if method == "profusion" else ["_local_scalar_dense"]), "the prompt's number, on the CPU"


@pytest.mark.parametrize(
    ("method", "settings", "backend"),
    [
        pytest.param("profusion", {}, "aot_eager", marks=pytest.mark.slow),
        ("profusion", {"train": "lora", "gradient_checkpointing": True}, "eager"),
        pytest.param("textual-inversion", {}, "eager", marks=pytest.mark.slow),
    ],
)
def test_a_compiled_objective_trains_the_same(base_folder, monkeypatch, method, settings, backend):
    """It is compiled once: forwards and backwards (aot_eager), or forwards alone, which takes less time; making code of
    it would take minutes."""
    plain, compiled, graphs = torch.nn.Module.compile, [], []
    compile_graph = torch._dynamo.lookup_backend(backend)

    def counted(*arguments: Any) -> Any:
        graphs.append(arguments)
        return compile_graph(*arguments)

    def compile_with(self: torch.nn.Module, **options: Any) -> None:
        compiled.append(type(self).__name__)
        plain(self, backend=counted, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with)
    expected = tuned_by(base_folder, method, **settings)
    assert not compiled
    after: list[int] = []
    tuned = tuned_by(base_folder, method, lambda *_: after.append(len(graphs)), True, **settings)
    assert compiled == ["TrainingObjective" if method == "profusion" else "WordObjective"]
    assert after[0] == after[-1] > 0
    assert tuned.losses == pytest.approx(expected.losses, rel=1e-4)


def test_tuning_is_compiled_where_it_is_asked_for(photo, tmp_path, monkeypatch):
    def broken(self: torch.nn.Module, **_: Any) -> None:
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    tuned = ("finetune", photo, "--preset", "tiny-random", "--no-augment", "--steps", 1)
    failed = run(*tuned, "--compile", "-o", tmp_path / "x.pfz")
    assert failed.exit_code == 6 and "--compile" in failed.stderr
    ok(*tuned, "-o", tmp_path / "x.pfz")


def test_the_order_of_memory_changes_nothing(base_folder, monkeypatch):
    """Convolutions have their channels last; beside a training where they have not."""
    arranged, orders = training.arranged, []

    def noted(network: torch.nn.Module, *arguments: Any) -> torch.nn.Module:
        network = arranged(network, *arguments)
        orders.append(any(not parameter.is_contiguous() for parameter in network.parameters()))
        return network

    monkeypatch.setattr(training, "arranged", lambda network, device, compiled: network.to(device))
    expected = tuned_by(base_folder, "dreambooth")
    monkeypatch.setattr(training, "arranged", noted)
    tuned = tuned_by(base_folder, "dreambooth")
    assert orders == [True]
    assert tuned.losses == pytest.approx(expected.losses, rel=1e-4)
    for name, change in expected.unet_changes.items():
        assert (tuned.unet_changes[name] - change).abs().mean() < 1e-4, name
