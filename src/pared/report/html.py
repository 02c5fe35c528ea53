"""One HTML page, self-contained, that opens offline."""

from html import escape
from pathlib import Path

from pared.report import figures
from pared.report.reading import RunRecord, read_run
from pared.report.table import HEAD, rows, sentences
from pared.storage import write_named

LIMITS = (
    "Scores are of one split; the interval is for the test rows only, not for another split or seed.",
    "Kept columns are one run's finding. Call them a result only if they recur over several seeds.",
    "Latency was measured in this process on one thread of this machine and varies with its load.",
    "A model answers for rows like those it was trained on; check it again when the data changes.",
)
MOST_COLUMNS = 60


def standalone(figure: str) -> str:
    """Return an SVG that brings the report's style along, for use outside of one."""
    style = "svg{background:var(--paper)}" + STYLE[: STYLE.index("*{box-sizing")]
    style += STYLE[STYLE.index("svg text{") : STYLE.index(".wide{")]
    return figure.replace("</title>", f"</title><style>{style}</style>", 1)


def write_report(folder: Path) -> Path:
    """Write report.html into a finished run folder and return its path."""
    path = folder / "report.html"
    write_named(path, render_html(read_run(folder)))
    return path


def render_html(run: RunRecord) -> str:
    """Return the page."""
    summary = run.summary
    target = escape(", ".join(summary["task"]["targets"]))
    sections = [
        ("", _figure(figures.front_figure(run))),
        ("The front", _table(run)),
        ("Columns", _columns(run)),
        ("How the network shrank", _figure(figures.width_figure(run), figures.strength_figure(run))),
        ("Learning curves", _figure(figures.curve_figure(run), figures.loss_figure(run))),
        ("What died when", _figure(figures.death_figure(run))),
        ("Size and latency", _figure(figures.before_after_figure(run))),
        ("Data and protocol", _data(run)),
        ("Limits", "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in LIMITS) + "</ul>"),
        ("How to run it again", _again(run)),
    ]
    body = "".join(
        f"<section>{f'<h2>{title}</h2>' if title else ''}{content}</section>" for title, content in sections if content
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>pared: {target}</title><style>{STYLE}</style></head><body><main>"
        f"<p class=kicker>pared · {escape(str(summary['data']['source']))} · "
        f"{target}</p><h1>{escape(headline(run)).replace(' %', '&nbsp;%')}</h1>"
        f"{body}</main></body></html>"
    )


def _figure(*charts: str) -> str:
    return "".join(f'<div class="wide">{chart}</div>' for chart in charts if chart)


def headline(run: RunRecord) -> str:
    """Return the run in a sentence, gain or no gain."""
    summary, show = run.summary, run.metric.format
    chosen, start = summary["chosen"], summary["start"]
    factor = start["params"] / chosen["params"]
    speed = start["latency_us_256"] / chosen["latency_us_256"]
    if factor < 1.5:
        return f"No smaller network held up: {chosen['params']:,} of {start['params']:,} parameters are needed."
    faster = f"{speed:.1f} times faster on 256 rows" if speed >= 1.2 else "no faster"
    return (
        f"{chosen['params']:,} parameters instead of {start['params']:,}: test {run.metric.label} "
        f"{show(chosen['test_score'])} instead of {show(start['test_score'])}, {faster}."
    )


def _table(run: RunRecord) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    lines = "".join(
        f'<tr class="{row.kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in _short(row.cells)) + "</tr>"
        for row in rows(run)
    )
    notes = "".join(f"<p>{escape(line)}</p>" for line in sentences(run)[:2])
    return f'<div class="wide"><table class="front"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>{notes}'


def _short(cells: tuple[str, ...]) -> tuple[str, ...]:
    return (*cells[:-1], cells[-1].removesuffix(".safetensors"))


def _columns(run: RunRecord) -> str:
    records = run.summary["columns"]
    kept = [record for record in records if record["kept"]]
    gone = [record["name"] for record in records if not record["kept"]]
    scale = 100 if run.metric.points else 1
    unit = "points of " if run.metric.points else ""
    lines = "".join(
        f"<tr><td>{escape(r['name'])}</td><td>{escape(', '.join(r['inputs']))}</td><td>{scale * r['importance']:.2f}</td></tr>"
        for r in kept[:MOST_COLUMNS]
    )
    more = f"<p>and {len(kept) - MOST_COLUMNS} more</p>" if len(kept) > MOST_COLUMNS else ""
    left = ", ".join(gone[:MOST_COLUMNS]) + (
        f" and {len(gone) - MOST_COLUMNS} more" if len(gone) > MOST_COLUMNS else ""
    )
    return (
        f"<p>The chosen network asks for {len(kept)} of {len(records)} columns. Worth is how many "
        f"{unit}{escape(run.metric.label)} "
        "are lost on the test rows when the column is shuffled.</p>"
        f'<div class="wide"><table class="columns"><thead><tr><th>column</th><th>inputs</th><th>worth</th></tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{more}" + (f"<p>Not asked for: {escape(left)}.</p>" if gone else "")
    )


def _data(run: RunRecord) -> str:
    data, summary = run.summary["data"], run.summary
    facts = {
        "rows": f"{data['rows']:,} in the table; {data['train']:,} training, {data['validation']:,} validation, "
        f"{data['test']:,} test",
        "columns": f"{data['columns']:,}, encoded as {data['inputs']:,} inputs",
        "task": f"{summary['task']['kind']}, judged by {run.metric.label}",
        "seconds": ", ".join(
            f"{name.replace('_', ' ')} {value:.1f}" for name, value in summary["seconds_by_phase"].items()
        ),
        "seed": str(summary["seed"]),
        "versions": ", ".join(f"{name} {value}" for name, value in summary["versions"].items()),
    }
    lines = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    warnings = "".join(f"<li>{escape(line)}</li>" for line in data["warnings"])
    return (
        "<p>Everything was chosen on the validation rows and is reported on the test rows. Once chosen, the "
        "networks of the "
        "front and the dense reference were fitted once more on training and validation rows together, unless "
        "refit is off; "
        "validation scores are of the twins that never saw the validation rows.</p>"
        f'<table class="facts"><tbody>{lines}</tbody></table>'
        + (f"<h3>Warnings</h3><ul>{warnings}</ul>" if warnings else "")
    )


def _again(run: RunRecord) -> str:
    command, config = escape(run.summary["command"]), escape(run.config)
    return f"<pre>{command}</pre><details><summary>config.toml</summary><pre>{config}</pre></details>"


STYLE = """
:root{--paper:#fff;--ink:#1d2129;--soft:#5b6472;--rule:#e3e6eb;--mark:#fff4e0;
--blue:#0072b2;--orange:#b86e00;--green:#00795a;--pink:#a8497f;--sky:#2f86b8;--red:#c04a00}
@media(prefers-color-scheme:dark){:root{--paper:#14171c;--ink:#e8eaee;--soft:#a3acb9;--rule:#2c323b;--mark:#3a2f1b;
--blue:#56b4e9;--orange:#e69f00;--green:#2fc79a;--pink:#dd94bf;--sky:#9bd4f5;--red:#ff8a4c}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:960px;margin:0 auto;padding:48px 24px 96px}
h1{font-size:30px;line-height:1.25;margin:.2em 0 1em;text-wrap:balance}
h2{font-size:20px;margin:56px 0 12px}h3{font-size:16px;margin:24px 0 4px}.kicker{color:var(--soft);margin:0}
svg{display:block;width:100%;min-width:600px;height:auto;margin:8px 0}
svg text{font:12px system-ui,sans-serif;paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
svg text:not([fill]){fill:var(--soft)}
svg text.strong{font-weight:600}.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
.front td,.front th{padding:6px 7px}
th,td{padding:6px 10px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600}
td:nth-child(-n+2),th:nth-child(-n+2),td:nth-child(9),th:nth-child(9){text-align:left}
tr.chosen{background:var(--mark);font-weight:600}tr.reference td{color:var(--soft)}
.columns td{white-space:normal}.facts th,.facts td{text-align:left;white-space:normal;vertical-align:top}
pre{background:var(--rule);padding:12px;overflow-x:auto;border-radius:6px;font-size:13px}ul{padding-left:20px}
"""
