"""What a subject changes in the networks that it was tuned on: read from its bundle, and laid over them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from profusion_cli.bundle import Bundle
from profusion_cli.bundle.kinds import ADAPTERS_FILE, UNET_FILE
from profusion_cli.bundle.manifest import PARENT
from profusion_cli.config import PromptNetSource
from profusion_cli.errors import BundleError
from profusion_cli.runtime.backbone import BaseModel
from profusion_cli.runtime.hub import fingerprint_of
from profusion_cli.runtime.keeping import KeptBase
from profusion_cli.runtime.promptnet import PromptNet
from profusion_cli.runtime.weights import load_promptnet, shapes_of, tensors_of

DOWN, UP, DIFF = ".lora_A.weight", ".lora_B.weight", ".diff"
"""How names of tensors end: of the two factors behind the module's, and of a difference behind the parameter's."""
_NETWORKS = {"unet": "the base model's UNet", "promptnet": "the PromptNet"}


@dataclass(frozen=True)
class LowRank:
    """A change of one weight: Delta W = B A, eq. (3) of arXiv 2106.09685, with alpha / r multiplied into B.

    Args:
        down: A, shape (r, in, ...); of a convolution, with its kernel.
        up: B, shape (out, r, ...), whose further sides are 1.
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """That of the weight."""
        return torch.Size((self.up.shape[0], *self.down.shape[1:]))

    def whole(self) -> torch.Tensor:
        """B A in float32, of the weight's shape."""
        return (self.up.float().flatten(1) @ self.down.float().flatten(1)).reshape(self.shape)


Change = torch.Tensor | LowRank
"""Of one parameter: what is added to it."""


def whole(change: Change) -> torch.Tensor:
    """What is added to the parameter, of its shape."""
    return change.whole() if isinstance(change, LowRank) else change


def changes_of(tensors: Mapping[str, torch.Tensor], network: str) -> dict[str, Change]:
    """What a network's parameters are changed by, by their names.

    Args:
        tensors: `network.module.lora_A.weight` with its `lora_B.weight`, and `network.parameter.diff`.
        network: whose.
    """
    own = {
        name.removeprefix(f"{network}."): tensor for name, tensor in tensors.items() if name.startswith(f"{network}.")
    }
    changes: dict[str, Change] = {
        name.removesuffix(DIFF): tensor for name, tensor in own.items() if name.endswith(DIFF)
    }
    for name, tensor in own.items():
        if name.endswith(DOWN):
            module = name.removesuffix(DOWN)
            changes[f"{module}.weight"] = LowRank(tensor, own[module + UP])
    return changes


@torch.no_grad()
def add_changes(network: nn.Module, changes: Mapping[str, Change]) -> None:
    """Change a network's parameters, in place."""
    parameters = dict(network.named_parameters())
    for name, change in changes.items():
        parameters[name] += whole(change).to(parameters[name])


def read_changes(bundle: Bundle, network: str, parameters: Mapping[str, torch.Tensor]) -> dict[str, Change]:
    """What a subject changes in a network, by parameter name; may be empty.

    Args:
        bundle: of the subject.
        network: `unet`, of the base model, or `promptnet`, which its adapters are for.
        parameters: the network's, by name.

    Raises:
        BundleError: a change that fits no parameter.
    """
    changes: dict[str, Change] = {}
    dense = {f"unet.{name}{DIFF}": shape for name, shape in _shapes_in(bundle, UNET_FILE).items()}
    adapters = _shapes_in(bundle, ADAPTERS_FILE)
    for name, shape in {**dense, **adapters}.items():
        of = name.partition(".")[0]
        if of not in _NETWORKS or (of == network and not _fits(name, shape, adapters, network, parameters)):
            raise BundleError(
                f"'{bundle.name}' changes '{name}' {list(shape)}, which fits nothing in {_NETWORKS.get(of, of)}.",
                "Use the base model and the PromptNet that the bundle was made with.",
            )
    if adapters:
        changes |= changes_of(tensors_of(bundle, ADAPTERS_FILE), network)
    if dense and network == "unet":
        changes |= tensors_of(bundle, UNET_FILE)
    return changes


def _shapes_in(bundle: Bundle, name: str) -> dict[str, tuple[int, ...]]:
    return shapes_of(bundle, name) if name in bundle.files else {}


def _fits(
    name: str,
    shape: tuple[int, ...],
    adapters: Mapping[str, tuple[int, ...]],
    network: str,
    parameters: Mapping[str, torch.Tensor],
) -> bool:
    """Whether a tensor of adapters or differences is for a parameter of a network, and complete."""
    own = name.removeprefix(f"{network}.")
    if own.endswith(DIFF):
        of = parameters.get(own.removesuffix(DIFF))
        return of is not None and tuple(of.shape) == shape
    module = own.removesuffix(DOWN).removesuffix(UP)
    of, down, up = parameters.get(f"{module}.weight"), *(adapters.get(f"{network}.{module}{end}") for end in (DOWN, UP))
    if own == module or of is None or of.ndim < 2 or not down or not up:
        return False
    return down == (up[1], *of.shape[1:]) and up == (of.shape[0], up[1], *[1] * (of.ndim - 2))


def adapted_promptnet(bundle: Bundle, parent: PromptNetSource, base: BaseModel) -> PromptNet:
    """The PromptNet of a subject that has adapters for one: that, changed by them.

    Args:
        bundle: of the subject.
        parent: where the PromptNet is that they are for.
        base: the base model.

    Raises:
        UnavailableError: it cannot be had.
        BundleError: it is another one, or changes do not fit it.
    """
    promptnet = _parent(parent, base)
    check_parent(bundle, promptnet, parent.weights)
    add_changes(promptnet, read_changes(bundle, "promptnet", dict(promptnet.named_parameters())))
    return promptnet


def _parent(source: PromptNetSource, base: BaseModel) -> PromptNet:
    """The PromptNet there, which may be changed."""
    if not isinstance(base, KeptBase):
        return load_promptnet(source, base, 0).promptnet
    if source not in base.promptnets:
        base.promptnets[source] = load_promptnet(source, base, 0).promptnet
    return copy.deepcopy(base.promptnets[source])


def check_parent(bundle: Bundle, promptnet: PromptNet, name: str | None) -> str:
    """It is the PromptNet that a subject was tuned from, as far as its bundle says which.

    Returns:
        Its fingerprint.

    Raises:
        BundleError: it is another one.
    """
    wanted, present = bundle.manifest.get(PARENT), promptnet_fingerprint(promptnet)
    if wanted is not None and present != wanted:
        raise BundleError(
            f"'{bundle.name}' was tuned from the PromptNet of fingerprint {wanted}, and that of '{name}' is {present}.",
            "Give the PromptNet that it was made with, by --promptnet.",
        )
    return present


def promptnet_fingerprint(promptnet: PromptNet) -> str:
    """16 hexadecimal digits that identify its weights, however they are stored; see `hub.fingerprint`."""
    return fingerprint_of(promptnet.state_dict(), lambda name: True)


def tuned_weights(
    parameters: Mapping[str, torch.Tensor], changes: Sequence[Mapping[str, Change]], weights: Sequence[float]
) -> dict[str, torch.Tensor]:
    """Base weights plus the weighted mean of the subjects' changes, for every changed parameter.

    Args:
        parameters: the base UNet's, by name.
        changes: for each subject, by parameter name; may be empty.
        weights: of the subjects, at least 0, normalised here; all of them 0: the base UNet itself.
    """
    total = sum(weights) or 1.0
    tuned: dict[str, torch.Tensor] = {}
    for change, weight in zip(changes, weights, strict=True):
        for name, delta in change.items():
            before = tuned.get(name, parameters[name])
            tuned[name] = before + weight / total * whole(delta).to(before)
    return tuned
