"""What is loaded for one subject and kept for the next."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING

from profusion_cli.config import Config
from profusion_cli.listener import Listener

if TYPE_CHECKING:
    from profusion_cli.runtime.inpaint import Painter
    from profusion_cli.runtime.subjects import Tuner


class SubjectModels:
    """Models that several subjects are made with, and drawn with, each loaded when it is first wanted.

    Use as a context manager.

    Args:
        config: of all subjects.
        listener: who hears of it.
    """

    def __init__(self, config: Config, listener: Listener) -> None:
        self._config, self._listener, self._stack = config, listener, ExitStack()
        self._is_fitted = False

    def __enter__(self) -> SubjectModels:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def fitted(self, augments: bool) -> Config:
        """The configuration of all subjects, chosen for the memory that is free before the first one."""
        from profusion_cli.runtime.choosing import fitted

        if not self._is_fitted:
            self._config, self._is_fitted = fitted(self._config, augments, self._listener), True
        return self._config

    @cached_property
    def tuner(self) -> Tuner:
        """Tunes subjects, on a base model that pictures are drawn with too."""
        from profusion_cli.runtime.subjects import open_tuner

        return self._stack.enter_context(open_tuner(self._config, self._listener, several=True))

    @cached_property
    def painter(self) -> Painter | None:
        """Paints the backgrounds of views; None where they are plain colours."""
        if not self._config.augment.inpaint:
            return None
        from profusion_cli.runtime.inpaint import Painter

        return self._stack.enter_context(Painter(self._config, self._listener))
