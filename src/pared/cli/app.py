"""`pared fit`, `search`, `predict`, `report`, `show`; nothing heavy is imported first, so `--help` answers at once."""

import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pared._version import __version__
from pared.cli.options import (
    ClassWeights,
    Decimal,
    Delimiter,
    Device,
    Drop,
    Header,
    Quiet,
    RunFolder,
    Target,
    Task,
    Test,
    Threads,
    Weights,
    check_task,
    escaped,
    floats,
    folder_name,
    integers,
    print_bytes,
)
from pared.errors import DataError, ParedError


class _Commands(TyperGroup):
    """The commands; an interrupt that nothing further in has spoken of is spoken of here, since typer ends without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            how = "; ".join(getattr(stop, "__notes__", ())) or "the same command starts again"
            typer.echo(f"pared: interrupted; {how}", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train neural networks that pare themselves down: one run gives the whole front of size against accuracy."""
    del version


@app.command()
def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="A .csv, .tsv, .parquet or .arff file (also .gz), openml:ID, or a built-in name "
            "(digits, breast-cancer, wine, diabetes, iris)."
        ),
    ],
    target: Target = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to write.  [default: runs/NAME]")] = None,
    test: Test = None,
    task: Task = None,
    weights: Weights = None,
    drop: Drop = None,
    header: Header = True,
    delimiter: Delimiter = None,
    decimal: Decimal = None,
    max_params: Annotated[
        int | None, typer.Option(help="Choose the best point with at most this many parameters.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Choose the smallest point at most this many points below the dense network.")
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option(help="Choose among points that answer one row within this many µs.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What chooses: accuracy, balanced_accuracy, roc_auc, f1, log_loss, r2, mae, rmse, …"),
    ] = None,
    select: Annotated[
        str | None, typer.Option(help="Which inputs can die: features, columns or none.  [default: features]")
    ] = None,
    hidden: Annotated[str | None, typer.Option(help="Widths to start from.  [default: 500,500]")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the shrinking run.  [default: about 7,500 steps]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a step.  [default: 16 to 512, by the number of rows]")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Adam's step size.  [default: 0.002]")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="L2 on everything except switches.  [default: 0.001]")
    ] = None,
    strength: Annotated[
        str | None, typer.Option(help="The penalty's first and last strength.  [default: 0.001,0.3]")
    ] = None,
    class_weights: ClassWeights = None,
    fine_tune: Annotated[
        int | None,
        typer.Option(help="Epochs of fine-tuning for each point, 0 for none.  [default: a fifth of --epochs]"),
    ] = None,
    refit: Annotated[
        bool | None, typer.Option(help="Fit the points once more on training and validation rows.  [default: refit]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of splits, weights and order of rows.  [default: 0]")] = None,
    device: Device = None,
    threads: Threads = None,
    config: Annotated[Path | None, typer.Option(help="A .toml file of settings; options given here win.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead of the table.")] = False,
) -> None:
    """Learn the front of small networks for a table, write a run folder, print the table."""
    given = {
        "max_params": max_params,
        "max_drop": max_drop,
        "max_latency": max_latency,
        "metric": metric,
        "select": select,
        "hidden": integers(hidden),
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "strength": floats(strength),
        "class_weights": class_weights,
        "fine_tune": fine_tune,
        "refit": refit,
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    options = _from_file(config) | {key: value for key, value in given.items() if value is not None}
    check_task(task)
    folder = out or Path("runs") / folder_name(data)
    import torch

    from pared.cli.progress import Progress
    from pared.cli.words import command_line
    from pared.fitting import fit as learn

    torch.set_flush_denormal(True)  # switches that decay go denormal; the command line owns its process
    with Progress(quiet=quiet or as_json) as progress:
        run = learn(
            data,
            target,
            out=folder,
            test=test,
            task=task,  # pyright: ignore[reportArgumentType]
            weights=weights,
            drop=drop or (),
            resume=resume,
            observer=progress.observer(),
            header=header,
            delimiter=escaped(delimiter),
            decimal=decimal,
            command=command_line(),
            **options,
        )
    if as_json:
        print_bytes(json.dumps(run.summary, indent=1, ensure_ascii=False) + "\n")
    elif not quiet:
        typer.echo(run.table())
        typer.echo(f"\nreport: {run.folder / 'report.html'}")
    if run.summary.get("interrupted"):
        typer.echo("pared: interrupted; the same command with --resume goes on", err=True)
        raise typer.Exit(130)


@app.command()
def search(
    data: Annotated[str, typer.Argument(help="A table, as for pared fit.")],
    target: Target = None,
    out: Annotated[Path | None, typer.Option(help="The search's folder.  [default: searches/NAME]")] = None,
    sampler: Annotated[str, typer.Option(help="random, tpe or hyperband.")] = "random",
    over: Annotated[
        str, typer.Option(help="widths of networks that keep them, or the strength of shrinking runs.")
    ] = "widths",
    trials: Annotated[int, typer.Option(help="Trials in the end.")] = 20,
    jobs: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    least_width: Annotated[int, typer.Option(help="The narrowest layer drawn.")] = 20,
    test: Test = None,
    task: Task = None,
    weights: Weights = None,
    drop: Drop = None,
    header: Header = True,
    delimiter: Delimiter = None,
    decimal: Decimal = None,
    metric: Annotated[str | None, typer.Option(help="What chooses, as for pared fit.")] = None,
    hidden: Annotated[
        str | None, typer.Option(help="The widest widths, or those to start from.  [default: 500,500]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a trial at most.  [default: 400]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step.")] = None,
    class_weights: ClassWeights = None,
    seed: Annotated[int | None, typer.Option(help="Of splits, draws and weights.  [default: 0]")] = None,
    device: Device = None,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print search.json instead of the table.")] = False,
) -> None:
    """Train many networks one by one and print their front; the same command again goes on, or joins in."""
    given = {
        "metric": metric,
        "hidden": integers(hidden),
        "epochs": epochs,
        "batch_size": batch_size,
        "class_weights": class_weights,
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    check_task(task)
    folder = out or Path("searches") / folder_name(data)
    import torch

    from pared.cli.progress import Progress
    from pared.cli.words import command_line
    from pared.searching import search as find

    torch.set_flush_denormal(True)
    with Progress(quiet=quiet or as_json) as progress:
        found = find(
            data,
            target,
            out=folder,
            sampler=sampler,  # pyright: ignore[reportArgumentType]
            over=over,  # pyright: ignore[reportArgumentType]
            trials=trials,
            jobs=jobs,
            least_width=least_width,
            test=test,
            task=task,  # pyright: ignore[reportArgumentType]
            weights=weights,
            drop=drop or (),
            observer=progress.observer(),
            header=header,
            delimiter=escaped(delimiter),
            decimal=decimal,
            command=command_line(),
            **{key: value for key, value in given.items() if value is not None},
        )
    if as_json:
        print_bytes(json.dumps(found.summary, indent=1, ensure_ascii=False) + "\n")
    elif not quiet:
        typer.echo(found.table())
    if found.summary["interrupted"]:
        typer.echo("pared: interrupted; the same command goes on", err=True)
        raise typer.Exit(130)


@app.command()
def predict(
    run: RunFolder,
    data: Annotated[str, typer.Argument(help="The table with new rows.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The .csv to write, - for standard output.  [default: -]")
    ] = None,
    point: Annotated[
        int | None, typer.Option(help="A point of the front by number, 0 the largest; else the chosen one.")
    ] = None,
    header: Annotated[
        bool | None, typer.Option(help="Whether the first line names the columns.  [default: as in training]")
    ] = None,
    delimiter: Delimiter = None,
    decimal: Decimal = None,
) -> None:
    """Answer for new rows: labels and probabilities, or quantities."""
    from pared.data.source import load_table
    from pared.run import Run, answer

    document = Run.open(run).document(point)
    given = {"header": header, "delimiter": escaped(delimiter), "decimal": decimal}
    frame = load_table(data, **given, **document.reading()).frame
    answers = answer(document, frame)
    for name, count in document.encoder.unseen(frame).items():
        typer.echo(
            f"warning: column {name!r} holds values never seen in training in {count} row{'s' * (count != 1)}", err=True
        )
    text = answers.to_csv(index=False)
    if out is None or str(out) == "-":
        print_bytes(text)
        return
    from pared.storage import write_named

    write_named(out, text)
    typer.echo(f"{len(answers)} rows written to {out}", err=True)


@app.command()
def report(run: RunFolder) -> None:
    """Write report.html and card.md of a run anew."""
    from pared.run import Run

    typer.echo(str(Run.open(run).report()))


@app.command()
def show(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json instead.")] = False,
) -> None:
    """Print the table of a run again."""
    from pared.run import Run

    opened = Run.open(run)
    if as_json:
        print_bytes(json.dumps(opened.summary, indent=1, ensure_ascii=False) + "\n")
    else:
        typer.echo(opened.table())


def _from_file(path: Path | None) -> dict[str, Any]:
    import tomllib

    if path is None:
        return {}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give a .toml file with settings such as epochs = 50") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} is not valid TOML ({error}); mend that line") from None
    return dict(data.get("settings", data))


def main() -> None:
    """Run the command line: mistakes end in one sentence and status 2, Ctrl-C in status 130, SIGTERM in 143."""
    from pared.interrupts import interruptible

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without our letters gets them as escapes
            stream.reconfigure(errors="backslashreplace")
    with interruptible() as seen:
        try:
            _run()
        except SystemExit as stop:
            if stop.code == 130 and seen:
                sys.exit(128 + seen[0])
            raise


def _run() -> None:
    try:
        app()
    except ParedError as error:
        typer.echo(f"pared: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("pared: interrupted; the same command starts again", err=True)
        sys.exit(130)
    except ModuleNotFoundError as error:
        typer.echo(f"pared: {error.name} is not installed; pip install 'pared[all]'", err=True)
        sys.exit(2)
