"""`sample --offload`: the same pictures with UNet and PromptNet in main memory, where they do not fit the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import group_offloading

from profusion_cli.bundle import read_bundle
from profusion_cli.jobs.configuration import load_config
from profusion_cli.runtime import choosing
from profusion_cli.runtime.choosing import offloads
from profusion_cli.runtime.device import Placement
from profusion_cli.runtime.estimates import sampling_estimate
from tests.conftest import ok, run

DRAWN = ("S* in style", "--steps", 3, "-n", 2)
GPU = Placement(torch.device("cuda"), torch.float16, torch.float16, "no")


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pictures_are_the_same(subject, other_subject, tmp_path, monkeypatch):
    """To the byte, from CPU to CPU, with every layer fetched at every evaluation."""
    fetched, fetch = [], group_offloading.ModuleGroup.onload_

    def counted(group: Any) -> None:
        fetched.append(group)
        fetch(group)

    ok("sample", subject, other_subject, *DRAWN, "-o", tmp_path / "none")
    monkeypatch.setattr(group_offloading.ModuleGroup, "onload_", counted)
    ok("sample", subject, other_subject, *DRAWN, "--offload", "none", "-o", tmp_path / "told")
    assert not fetched
    ok("sample", subject, other_subject, *DRAWN, "--offload", "group", "-o", tmp_path / "group")
    assert len(fetched) > 300
    assert pictures(tmp_path / "none") == pictures(tmp_path / "group") and len(pictures(tmp_path / "none")) == 2


def test_the_way_between_subjects_is_the_same(subject, other_subject, tmp_path):
    """Where the UNet gets other weights for each picture."""
    way = ("interpolate", subject, other_subject, "S* in style", "--frames", 3, "--steps", 3)
    for name in ("none", "group"):
        ok(*way, "--offload", name, "-o", tmp_path / f"{name}.png")
    assert (tmp_path / "none.png").read_bytes() == (tmp_path / "group.png").read_bytes()


def test_drawing_after_tuning(photo, tmp_path):
    """The networks of a subject that is tuned next are as they were."""
    made = ("--preset", "tiny-random", "--no-augment", "--steps", 1, "--each", "--draw", "S* in style")
    few = ("--set", "sample.steps=3")
    other = tmp_path / "other.png"
    other.write_bytes(photo.read_bytes())
    for name in ("none", "group"):
        folder = tmp_path / name
        ok("finetune", photo, other, *made, *few, f"--set=offload={name}", "-o", folder, "--pictures", folder / "drawn")
    named = [sorted((tmp_path / name).rglob("*.p[fn][zg]")) for name in ("none", "group")]
    assert len(named[0]) == 4
    assert [path.read_bytes() for path in named[0]] == [path.read_bytes() for path in named[1]]


def test_auto_offloads_what_does_not_fit(subject, monkeypatch):
    config, bundle = load_config("tiny-random"), read_bundle(subject.read_bytes(), "me.pfz")
    needed = sampling_estimate(config, GPU, 1)
    assert sampling_estimate(replace(config, offload="group"), GPU, 1) < 0.8 * needed
    monkeypatch.setattr(choosing, "free", lambda device: int(needed / 0.9) + 10)
    assert not offloads(config, GPU, [bundle]) and offloads(config, GPU, [bundle] * 2)
    monkeypatch.setattr(choosing, "free", lambda device: 0)
    assert not offloads(config, Placement(torch.device("cpu"), torch.float32, torch.float32, "no"), [bundle])


def test_it_is_the_machines_affair(subject, photo, tmp_path):
    """No bundle remembers it, and it does not go with --compile."""
    target = tmp_path / "me.pfz"
    made = ("--preset", "tiny-random", "--no-augment", "--steps", 0, "--set", "offload=group")
    ok("finetune", photo, *made, "-o", target)
    assert "offload" not in read_bundle(target.read_bytes(), "me.pfz").manifest["config"]
    assert run("sample", subject, *DRAWN, "--offload", "group", "--compile", "-o", tmp_path / "x").exit_code == 3


@pytest.mark.parametrize("text", ["sometimes", "true"])
def test_other_words_are_refused(subject, tmp_path, text):
    result = run("sample", subject, *DRAWN, "--offload", text, "-o", tmp_path / "x")
    assert result.exit_code == 3 and "auto, none, group" in result.stderr
