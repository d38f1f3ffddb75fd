"""`gitd check`: proves that what is stored is what it says, and repairs what is not."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gitd.beside import beside, data_option, json_option, open_records, print_json


@click.command("check")
@data_option
@click.option("--deep", is_flag=True, help="Read every stored byte too.")
@click.option("--repair", is_flag=True, help="Mend what is damaged from other copies. Reads all.")
@click.option(
    "--from",
    "brought",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, resolve_path=True),
    help="With --repair: an exported artifact, or a folder, that may have a copy.",
)
@click.option("--rebuild-index", is_flag=True, help="Make the records of the store anew from it.")
@json_option
def check(
    *,
    data: Path,
    deep: bool,
    repair: bool,
    brought: tuple[Path, ...],
    rebuild_index: bool,
    as_json: bool,
) -> None:
    """Prove that what is stored is what it says. Exits 1 when something is wrong."""
    from gitd.checking import check_data, in_words, rebuild_data, repair_data
    from gitd.config import Config
    from gitd.stores import noted_settings
    from gitd.terminal import printable

    if brought and not repair:
        raise click.UsageError("--from goes with --repair")
    folder = beside(data)
    settings = noted_settings(folder) or Config()
    with open_records(folder) as records:
        if rebuild_index:
            rebuilt = rebuild_data(folder, records, settings)
            if not as_json:
                click.echo(rebuilt)
        if repair:
            report = repair_data(folder, records, settings, brought=brought)
        else:
            report = check_data(folder, records, settings, is_deep=deep or rebuild_index)
    if as_json:
        print_json(report)
    else:
        for line in in_words(report):
            click.echo(printable(line))  # damage is quoted in it, whatever that is by now
    if not report.ok:
        sys.exit(1)
