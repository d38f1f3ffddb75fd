"""Run values: what a program of a release is given, and what hides the secrets among it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hooks.builds.logs.masking import Masker
from hooks.deploys.wire import Config


@dataclass(frozen=True, slots=True)
class RunValues:
    """What a program is given: `environ` by name, and what hides the secrets in what it says."""

    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    masker: Masker = field(default_factory=Masker)

    @classmethod
    def of(cls, config: Config | None) -> RunValues:
        if config is None:
            return cls()
        return cls({**config.plain, **config.secrets}, Masker(config.secrets))
