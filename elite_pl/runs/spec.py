"""The specification of a run: its configuration, and the identity and directory derived from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elite_pl import config as configuration
from elite_pl.config import Config
from elite_pl.runs.identity import config_hash, run_directory


@dataclass(frozen=True)
class RunSpec:
    """A run, finished or not.

    Attributes:
        config: The checked configuration, as the command has it.
        plain: The same as plain dictionaries, lists and scalars, with all references resolved.
        hash: Its identity, see `config_hash`.
        directory: Its run directory.
    """

    config: Config
    plain: dict[str, Any]
    hash: str
    directory: Path

    @classmethod
    def of(cls, config: Config) -> RunSpec:
        """Checks a configuration, and works out what follows from it.

        Raises:
            InputError: If a value is out of its range; names the key.
        """
        configuration.check(config)
        plain = configuration.plain(config)
        hash = config_hash(plain)
        return cls(config, plain, hash, run_directory(plain, hash))
