"""Low-rank adapters (LoRA, arXiv 2106.09685) while they are trained, by peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer, LoraModel
from torch import nn

from profusion_cli.errors import ConfigError
from profusion_cli.lora import AdapterConfig
from profusion_cli.runtime.changes import DOWN, UP

_NAME = "default"


def targets(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Linear layers and convolutions of a network whose name, or that of what holds them, ends in one of these.

    Args:
        network: see above.
        names: such as `to_q`, or `down_prompt_projections` for all layers in it.
    """
    found = []
    for path, module in network.named_modules():
        ends = (path, path.rpartition(".")[0])
        if isinstance(module, nn.Linear | nn.Conv2d) and any(
            f".{end}".endswith(f".{n}") for end in ends for n in names
        ):
            found.append(path)
    return found


class Adapters:
    """Adapters within networks, whose own weights are frozen, while they are trained.

    Args:
        networks: by their names; changed in place.
        config: rank, alpha and target modules.
        seed: of A; B is 0 at first, so that nothing is changed.

    Raises:
        ConfigError: no module of the networks is a target.
    """

    def __init__(self, networks: Mapping[str, nn.Module], config: AdapterConfig, seed: int) -> None:
        self._tuners = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, network in networks.items():
                found = targets(network, config.targets)
                if not found:
                    raise ConfigError(
                        f"finetune.adapters.targets={','.join(config.targets)} names no layer of the {name}.",
                        "Name modules such as to_q and to_v, or leave it out.",
                    )
                alpha = config.rank if config.alpha is None else config.alpha
                own = LoraConfig(r=config.rank, lora_alpha=alpha, target_modules=found)
                self._tuners[name] = LoraModel(network.requires_grad_(False), own, _NAME)

    def take(self) -> dict[str, torch.Tensor]:
        """The factors of every adapter, float32 on the CPU, by names that `changes_of` knows; the networks are as they
        were."""
        taken = {}
        for name, tuner in self._tuners.items():
            for path, layer in _layers(tuner.model):
                taken[f"{name}.{path}{DOWN}"] = layer.lora_A[_NAME].weight.detach().float().cpu()
                taken[f"{name}.{path}{UP}"] = (layer.lora_B[_NAME].weight * layer.scaling[_NAME]).detach().float().cpu()
            tuner.unload()
        return taken


def _layers(network: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    return ((path, module) for path, module in network.named_modules() if isinstance(module, LoraLayer))
