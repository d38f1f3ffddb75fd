"""What a build is given of variables and secrets: what it declares, and nothing else."""

from __future__ import annotations

from hooks.builds.errors import BuildFailedError
from hooks.builds.wire import Given
from hooks.variables import BuildValues


def given_to_build(found: BuildValues) -> Given:
    """Return what a slot is sent.

    Raises:
        BuildFailedError: `build.variable_missing`: something is declared, and not set.
    """
    if found.missing:
        raise BuildFailedError("build.variable_missing", _missing(found))
    values = found.values
    return Given(dict(values.secrets), dict(values.plain), found.undeclared, found.digest)


def _missing(found: BuildValues) -> str:
    unset = [name for name in found.missing if name not in found.run_only]
    faults = []
    if unset:
        faults.append(
            f"{_listed(unset)} not set for this environment or its site: see mf secrets set"
            " and mf variables set"
        )
    if found.run_only:
        faults.append(f"{_listed(found.run_only)} set only for what runs")
    return f"managed.toml declares build.variables, and {'; and '.join(faults)}."


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"
