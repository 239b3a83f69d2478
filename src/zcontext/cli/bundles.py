"""`bundle show` and `bundle verify`: what a codec on disk is, and whether it is whole."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from zcontext.bundles import DEFAULT_BUNDLE, find_bundle
from zcontext.cli import engines
from zcontext.cli.console import Command, Debug, results

app = typer.Typer(
    no_args_is_help=True,
    help="Look at a bundle: a trained codec on disk.",
    rich_markup_mode="rich",
)

Name = Annotated[
    str, typer.Argument(help="A folder, or the name of a bundle that ships.", metavar="BUNDLE")
]


@app.command("show", cls=Command)
def show(
    name: Name = DEFAULT_BUNDLE,
    json_: Annotated[bool, typer.Option("--json", help="The manifest itself.")] = False,
    debug: Debug = False,
) -> None:
    """Show what a bundle is: its codec, its base, its parts, how it was trained.

    Example:
      zcontext bundle show smollm2-135m
    """  # noqa: DOC101, DOC103 - the options tell
    from zcontext.bundle import read_manifest

    manifest = read_manifest(find_bundle(name))
    if json_:
        typer.echo(json.dumps(manifest, ensure_ascii=False))
        return
    table = Table(show_header=False, title=f"bundle {name}", title_justify="left")
    config, base = manifest["config"], manifest["base"]
    table.add_row("codec", manifest["codec"])
    table.add_row("written by", f"zcontext {manifest.get('zcontext', '?')}")
    table.add_row("base", f"{base.get('name')} (sha256 {str(base.get('sha256'))[:12]}...)")
    for key, value in config.items():
        table.add_row(key, str(value))
    for part, entry in manifest["parts"].items():
        table.add_row(part, f"{entry['n_bytes'] / 2**20:.1f} MiB, sha256 {entry['sha256'][:12]}...")
    training = manifest.get("training", {})
    for key in ("stage", "steps"):
        if key in training:
            table.add_row(key, str(training[key]))
    for key, value in sorted(training.get("figures", {}).items()):
        table.add_row(key, f"{value:.4g}")
    results().print(table)


@app.command("verify", cls=Command)
def verify(
    name: Name = DEFAULT_BUNDLE,
    load: Annotated[
        bool,
        typer.Option(
            "--load", help="Also load it onto its base and compare the codec's digest: seconds."
        ),
    ] = False,
    base: engines.Base = None,
    quantization: engines.Quantization = "nf4",
    dtype: engines.Dtype = "auto",
    device: engines.Device = "auto",
    debug: Debug = False,
) -> None:
    """Check that every part of a bundle is the one its manifest names.

    Example:
      zcontext bundle verify bundles/smollm2-135m --load
    """  # noqa: DOC101, DOC103 - the options tell
    from zcontext.bundle import read_manifest, read_parts

    folder = find_bundle(name)
    codec = str(read_manifest(folder)["codec"])
    parts = read_parts(folder)
    told = f"{len(parts)} parts are whole"
    if load:
        opened = engines.open_engines(str(folder), base, quantization, dtype, device)
        told += f"; loads on base {opened.model.base.name}"
    typer.echo(f"{folder}: {told}; codec {codec}")
