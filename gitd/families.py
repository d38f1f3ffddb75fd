"""Families of API keys: what their secrets begin with, and how people call them."""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    PERSONAL = "mfk_live"
    PERSONAL_TEST = "mfk_test"
    SERVICE = "mfs_live"

    @property
    def word(self) -> str:
        """As it is spelled by people: `personal`, `personal-test` or `service`."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of(cls, word: str) -> Family:
        """The family that people call so.

        Raises:
            ValueError: They call none so.
        """
        for family in cls:
            if family.word == word:
                return family
        raise ValueError(f"{word!r} is no family of keys")


FAMILIES = tuple(family.word for family in Family)
