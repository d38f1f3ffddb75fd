"""A plan: how a commit is built and what runs then. Values only; `detection.detect` makes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from hooks.builds.errors import BuildFailedError
from hooks.builds.profiles.managed_toml import (
    COMMAND_CHARS_MAX,
    CONFIG_INVALID,
    Fact,
    Profile,
    clean_folder,
)
from hooks.builds.wire import CONFIG_FILE_BYTES_MAX, Folder, RunCommands
from hooks.commands import shown_command

MANAGED_TOML, PROCFILE, INDEX = "managed.toml", "Procfile", "index.html"


class StepName(StrEnum):
    """What a command is there for. Each names a phase too."""

    INSTALL = "install"
    BUILD = "build"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class Step:
    """A command for `/bin/sh -c`, run in the sandbox, in the site's folder."""

    name: StepName
    command: str


@dataclass(frozen=True, slots=True)
class Need:
    """A program that the machine must have, and what its operator installs where it is missing.

    `programs`: one of them will do. `module` is one of Python's, for a `programs` of `python3`.
    """

    programs: tuple[str, ...]
    packages: str
    module: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What is known of a site's folder before it is fetched: names, and the text of a few files.

    `where` is the folder's path in the repository, `.` for the whole; `tree` the id of its git
    tree.
    """

    kinds: Mapping[str, str]
    files: Mapping[str, str]
    where: str = "."
    tree: str = ""

    @classmethod
    def of(cls, folder: Folder, where: str = ".") -> Listing:
        kinds = {entry.name: entry.kind for entry in folder.entries}
        return cls(kinds, folder.files, where, folder.tree)

    def path(self, name: str) -> str:
        """The path of one of its names in the repository."""
        return name if self.where == "." else f"{self.where}/{name}"

    def has_file(self, name: str) -> bool:
        return self.kinds.get(name) in ("file", "link")

    def has_folder(self, name: str) -> bool:
        return self.kinds.get(name) == "dir"

    def first_file(self, *names: str) -> str | None:
        return next((name for name in names if self.has_file(name)), None)

    def text(self, name: str) -> str | None:
        """Return the text of one of `wire.CONFIG_FILES`, None where it is absent.

        Raises:
            BuildFailedError: `build.config_invalid`, when it is no text of reasonable size.
        """
        if name in self.kinds and name not in self.files:
            raise BuildFailedError(
                CONFIG_INVALID,
                f"{self.path(name)} must be a plain file of UTF-8 text, of at most"
                f" {CONFIG_FILE_BYTES_MAX} bytes",
            )
        return self.files.get(name)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a profile does by itself with a tree. `managed.toml` overrides each part.

    Attributes:
        by: The names that decided, in the site's folder.
        install, build, prune, finish: Commands, in order. Who installs otherwise, by
            `build.install`, knows what has to stay, and nothing is pruned.
        prepare: What such an install of one's own begins with.
        web: The command that serves, when the tree says so itself.
        environment: Lines of shell by which a framework knows where it runs: `web` begins with
            them, and so does a release command beside it.
        web_notes: Lines for the log, where `web` is what runs.
        web_file: The file that it runs, where the build makes that; without it pages are served.
        output_folder: Where the build writes, when the tree says so.
        builds_more: It builds something else too, which is what is served where it is a site.
        needs: Programs of the language, to build and to run with.
        client_needs: Programs that `install` needs.
        left_out: Folders that are no part of a release, and may be kept for the next build.
        is_public: The program shows every file of its folder to visitors.
    """

    by: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    install: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    prune: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    web: str | None = None
    environment: tuple[str, ...] = ()
    web_notes: tuple[str, ...] = ()
    web_file: str | None = None
    output_folder: str | None = None
    builds_more: bool = False
    needs: tuple[Need, ...] = ()
    client_needs: tuple[Need, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    is_public: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How to build a commit.

    Attributes:
        by: The files that decided; for the log.
        root: The folder of the repository that is the site, `.` for all of it. Whatever follows
            is relative to it.
        tree: The id of that folder's git tree: equal for equal sources.
        steps: What to run; without any the artifact is made of the commit's own files.
        folder: The part of the tree that becomes the artifact, `.` for all of it.
        output_folders: When the build decides: the first of these that it filled is the artifact.
        web_file: What `run` begins, when the build makes it. A build that did not has pages alone.
        left_out: Folders of the site that are no part of the artifact.
        is_public: Visitors are shown every file of the artifact: it holds only what may be
            published.
        facts: What the steps are told of this very build.
        variables: The names of variables and secrets that its commands get.
        cache: Folders that the next build of the site finds as this one left them.
        notes: Lines for the log.
        unmet: Lines on the versions that the commit asks for and the server has not.
    """

    profile: Profile
    run: RunCommands
    by: tuple[str, ...] = ()
    root: str = "."
    tree: str = ""
    steps: tuple[Step, ...] = ()
    folder: str = "."
    output_folders: tuple[str, ...] = ()
    web_file: str | None = None
    needs: tuple[Need, ...] = ()
    left_out: tuple[str, ...] = ()
    is_public: bool = False
    facts: tuple[Fact, ...] = ()
    cache: tuple[str, ...] = ()
    ignores_submodules: bool = False
    ignores_lfs: bool = False
    variables: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()

    @property
    def is_source(self) -> bool:
        """Say whether the artifact is a folder of the commit as it stands."""
        return not self.steps

    @property
    def settings(self) -> dict[str, str]:
        """What the build was told, for its provenance: the commands of each step, a line each."""
        given = {} if self.root == "." else {"root": self.root}
        if self.variables and self.steps:
            given["variables"] = " ".join(self.variables)  # names, never values
        for name, steps in groupby(self.steps, lambda step: step.name):
            given["command" if name is StepName.BUILD else name] = "\n".join(
                step.command for step in steps
            )
        if self.facts:
            given["facts"] = " ".join(self.facts)
        return {**given, "output": " or ".join(self.output_folders) or self.folder}

    @property
    def source_folder(self) -> str:
        """The path in the repository of the folder that becomes the artifact, when nothing runs."""
        return clean_folder(f"{self.root}/{self.folder}")

    @property
    def explanation(self) -> str:
        """One line: which files decided, what is run, what is served."""
        steps = ", ".join(dict.fromkeys(step.name for step in self.steps))
        return f"{self.profile}, by {' and '.join(self.by)}: {steps and f'{steps}; '}{self._served}"

    @property
    def _served(self) -> str:
        if self.run.web is not None:
            part = "" if self.folder == "." else f", from {self.folder}"
            return f"runs {shown_command(self.run.web)}{part}"
        if self.output_folders:
            return "serves what the build writes"
        whole = "the whole tree" if self.root == "." else f"the whole of {self.root}"
        return f"serves {whole if self.folder == '.' else self.folder}" + (
            ", as committed" if self.is_source else ""
        )


def told(facts: Iterable[Fact], commit: str, ref: str | None, environment: str) -> dict[str, str]:
    """Return the variables by which a build knows what it asked for."""
    known = {Fact.COMMIT: commit, Fact.REF: ref or "", Fact.ENVIRONMENT: environment}
    return {f"GITD_{fact.upper()}": known[fact] for fact in facts}


def checked_command(command: str, where: str) -> str:
    """Return a command that the tree gave, when a statement can hold it.

    Raises:
        BuildFailedError: `build.config_invalid`, naming `where` it stands.
    """
    try:
        command.encode()
    except UnicodeEncodeError:
        fault = "is not Unicode text"
    else:
        if len(command) <= COMMAND_CHARS_MAX and "\0" not in command:
            return command
        fault = f"is longer than {COMMAND_CHARS_MAX} characters, or holds a NUL"
    raise BuildFailedError(CONFIG_INVALID, f"{where} {fault}")
