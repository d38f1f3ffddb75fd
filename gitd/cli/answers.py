"""Answers: the API's JSON objects, read without trust and without more demands than needed.

Clients ignore fields that they do not know, and fields that are absent read as empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gitd.cli.exits import StrangeAnswerError

Fields = Mapping[str, object]


def at(fields: Fields, dotted: str) -> object:
    """The value at a dotted path such as `actor.label`, or None."""
    value: object = fields
    for name in dotted.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def text_at(fields: Fields, dotted: str) -> str:
    """The value at a dotted path when it is a text, or an empty one."""
    value = at(fields, dotted)
    return value if isinstance(value, str) else ""


def as_fields(value: object, what: str) -> Fields:
    """The value, which must be an object: else the answer is none of this API's."""
    if not isinstance(value, dict):
        raise StrangeAnswerError(f"The server's answer has no {what}.")
    return value


@dataclass(frozen=True, slots=True)
class Page:
    """Items of a list in the server's order; `has_more` when the limit cut it."""

    items: list[Fields]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Job:
    """The async handle behind a 202. `fields` is the object as it came."""

    fields: Fields

    @classmethod
    def of(cls, value: object) -> Job:
        fields = as_fields(value, "job")
        if not text_at(fields, "id") or not text_at(fields, "status"):
            raise StrangeAnswerError("The server's answer is no job: it lacks an id or a status.")
        return cls(fields)

    @property
    def id(self) -> str:
        return text_at(self.fields, "id")

    @property
    def type(self) -> str:
        return text_at(self.fields, "type")

    @property
    def status(self) -> str:
        return text_at(self.fields, "status")

    @property
    def progress(self) -> int:
        """0 to 100."""
        value = self.fields.get("progress")
        return min(100, max(0, value)) if isinstance(value, int) else 0

    @property
    def queue_position(self) -> int | None:
        """1 for the next to start, of what is queued."""
        value = self.fields.get("queue_position")
        return value if isinstance(value, int) else None

    @property
    def is_over(self) -> bool:
        return self.status in ("succeeded", "failed", "canceled")

    @property
    def has_succeeded(self) -> bool:
        return self.status == "succeeded"

    def resource(self, name: str) -> str:
        """`type`, `id`, `site_id` or `env_id` of what the job works for."""
        return text_at(self.fields, f"resource.{name}")

    def result(self, name: str) -> str:
        """An id in the job's result, or an empty text."""
        return text_at(self.fields, f"result.{name}")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a job's log. `fields` is the object as it came."""

    fields: Fields

    @property
    def line(self) -> str:
        return text_at(self.fields, "line")

    @property
    def stage(self) -> str:
        return text_at(self.fields, "stage")

    @property
    def begins_stage(self) -> bool:
        """It marks where its stage begins, and says nothing else."""
        return text_at(self.fields, "mark") == "begin"
