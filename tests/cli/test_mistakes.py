"""Every mistake a person makes ends in one sentence, status 2, and no traceback."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from pared.cli import app as cli
from pared.train.settings import Settings

GOOD = "a,b,y\n" + "".join(f"{i % 7},{i % 5},{'pq'[i % 2]}\n" for i in range(40))
QUICK = ("--hidden", "6", "--epochs", "3", "--fine-tune", "1")
Case = tuple[str, str | bytes, list[str], str]

CASES: dict[str, Case] = {
    "missing file": ("", "", ["absent.csv", "--target", "y"], "absent.csv does not exist"),
    "an address": ("", "", ["https://example.org/t.csv", "--target", "y"], "is an address"),
    "a folder": ("", "", [".", "--target", "y"], "is a folder"),
    "empty file": ("f.csv", "", ["f.csv", "--target", "y"], "f.csv is empty"),
    "only a header": ("f.csv", "a,b,y\n", ["f.csv", "--target", "y"], "no rows"),
    "unknown extension": ("f.xlsx", "PK", ["f.xlsx", "--target", "y"], "extension '.xlsx' is not known"),
    "no target given": ("f.csv", GOOD, ["f.csv"], "which column is to be predicted"),
    "target absent": ("f.csv", GOOD.replace("y", "label", 1), ["f.csv", "--target", "labels"], "did you mean 'label'?"),
    "target constant": ("f.csv", GOOD.replace("q", "p"), ["f.csv", "--target", "y"], "is 'p' in every row"),
    "target all missing": ("f.csv", "a,y\n" + "1,?\n" * 30, ["f.csv", "--target", "y"], "missing in every row"),
    "one row": ("f.csv", "a,y\n1,p\n", ["f.csv", "--target", "y"], "known in one row only"),
    "few rows": ("f.csv", "a,y\n" + "1,p\n2,q\n" * 3, ["f.csv", "--target", "y"], "6 rows with a target are too few"),
    "a class with one row": ("f.csv", GOOD + "1,1,r\n", ["f.csv", "--target", "y"], "class 'r' of column 'y' has one row only"),
    "infinite target": ("f.csv", "a,y\n" + "".join(f"{i},{i}.5\n" for i in range(30)) + "3,inf\n", ["f.csv", "--target", "y"], "is infinite in row 31"),
    "infinite feature": ("f.csv", GOOD + "inf,1,p\n" * 6, ["f.csv", "--target", "y"], "column 'a' is infinite in row"),
    "text in a numeric column": ("f.csv", "a,y\n" + "".join(f"{i},{'pq'[i % 2]}\n" for i in range(200)) + "two,p\n" * 4, ["f.csv", "--target", "y"], "column 'a' holds numbers but 'two'"),
    "duplicated column names": ("f.csv", GOOD.replace("b", "a", 1), ["f.csv", "--target", "y"], "column name 'a' appears 2 times"),
    "unreadable encoding": ("f.csv", GOOD.encode() + b"\xe9t\xe9,1,p\n", ["f.csv", "--target", "y"], "line 42: not UTF-8"),
    "binary file": ("f.csv", b"a,b\n\x00\x01,2\n", ["f.csv", "--target", "y"], "binary data"),
    "wrong delimiter": ("f.csv", GOOD, ["f.csv", "--target", "y", "--delimiter", ";"], "the file seems to use ','"),
    "blanks as delimiter": ("f.csv", GOOD.replace(",", " "), ["f.csv", "--target", "y"], "a single column was found"),
    "ragged row": ("f.csv", GOOD + "1,2,3,4\n", ["f.csv", "--target", "y"], "line 42: expected 3 fields"),
    "corrupt gzip": ("f.csv.gz", gzip.compress(GOOD.encode())[:-9], ["f.csv.gz", "--target", "y"], "not a whole gzip file"),
    "corrupt parquet": ("f.parquet", b"PAR1 nothing", ["f.parquet", "--target", "y"], "not a whole parquet file"),
    "sparse arff": ("f.arff", "@relation r\n@attribute a numeric\n@attribute y {p,q}\n@data\n{0 1}\n", ["f.arff", "--target", "y"], "sparse ARFF"),
    "text to regress": ("f.csv", GOOD, ["f.csv", "--target", "y", "--task", "regression"], "holds text such as 'p'"),
    "no features": ("f.csv", "y\n" + "1\n2\n" * 20, ["f.csv", "--target", "y"], "no column is left"),
    "constant features": ("f.csv", "a,y\n" + "1,p\n1,q\n" * 20, ["f.csv", "--target", "y"], "no column varies"),
    "metric of another task": ("f.csv", GOOD, ["f.csv", "--target", "y", "--metric", "r2"], "does not fit classification"),
    "bad widths": ("f.csv", GOOD, ["f.csv", "--target", "y", "--hidden", "big"], "--hidden must be whole numbers"),
    "bad setting": ("f.csv", GOOD, ["f.csv", "--target", "y", "--lr", "-1"], "lr must be above 0"),
    "bad device": ("f.csv", GOOD, ["f.csv", "--target", "y", "--device", "abacus"], "device 'abacus' cannot be used"),
    "bad config": ("c.toml", "epochs = = 3", ["digits", "--config", "c.toml"], "not valid TOML"),
    "unknown setting": ("c.toml", "epoch = 3", ["digits", "--config", "c.toml"], "unknown setting 'epoch'"),
    "test table without target": ("f.csv", "a,b\n1,2\n", ["digits", "--test", "f.csv"], "lacks the target column 'target'"),
}  # fmt: skip


def pared(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pared", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    yield lambda *arguments: pared([str(a) for a in arguments], capsys, monkeypatch)
    torch.set_flush_denormal(False)  # the command line sets it for its own process, which here is the tests'


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_malformed_input(case: Case, run: Run, tmp_path: Path) -> None:
    name, content, arguments, message = case
    if name:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, out, err = run("fit", *arguments, "--out", "run")
    assert code == 2
    assert err.startswith("pared: ")
    assert message in err
    assert "Traceback" not in err + out
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run over numbers, categories and gaps."""
    folder = tmp_path_factory.mktemp("finished")
    rng = np.random.default_rng(0)
    x, city = rng.normal(size=300), rng.choice(["Rome", "Oslo"], 300)
    label = np.where((x > 0) ^ (city == "Rome"), "p", "q")
    frame = pd.DataFrame({"x": x, "city": city, "noise": rng.random(300), "y": label})
    frame.loc[::17, "x"] = np.nan
    frame.to_csv(folder / "good.csv", index=False)
    words = [
        "fit",
        "good.csv",
        "--target",
        "y",
        "--out",
        "run",
        "--hidden",
        "8,8",
        "--epochs",
        "30",
        "--lr",
        "0.02",
        "--quiet",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pared", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_a_run_folder_is_whole_and_taken(finished: Path, run: Run) -> None:
    files = {str(p.relative_to(finished / "run")) for p in (finished / "run").rglob("*") if p.is_file()}
    wanted = (
        "config.toml",
        "metrics.jsonl",
        "events.jsonl",
        "front.csv",
        "summary.json",
        "model.safetensors",
        "model.json",
    )
    assert {
        *wanted,
        "model.py",
        "model.onnx",
        "report.html",
        "card.md",
        "front/00.safetensors",
        "front/start.json",
    } <= files
    summary = json.loads((finished / "run/summary.json").read_text())
    assert len(pd.read_csv(finished / "run/front.csv")) == len(summary["front"])
    for record in map(json.loads, (finished / "run/metrics.jsonl").read_text().splitlines()):
        assert 0.0 <= record["density_printed"] <= record["density"] <= 1.0
        assert record["magnitude"] > record["mean_magnitude"] > 0.0
    code, _, err = run("fit", finished / "good.csv", "--target", "y", "--out", finished / "run")
    assert (code, "is not empty; add --resume" in err) == (2, True)
    code, _, err = run("fit", finished / "good.csv", "--target", "y", "--out", finished / "run", "--resume")
    assert (code, "was started with" in err) == (2, True)


def test_show_report_and_predict(finished: Path, run: Run, tmp_path: Path) -> None:
    code, table, _ = run("show", finished / "run")
    assert code == 0
    for word in ("dense", "chosen", "logistic regression", "histogram gradient boosting"):
        assert word in table
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run/report.html").unlink()
    assert run("report", tmp_path / "run")[0] == 0
    assert (tmp_path / "run/report.html").exists()
    (tmp_path / "new.csv").write_text("city,x,noise\nRome,1.0,.5\nAtlantis,,.5\n")
    code, _, _ = run("predict", "run", "new.csv", "-o", "out.csv")
    assert code == 0
    answers = pd.read_csv(tmp_path / "out.csv")
    assert list(answers) == ["prediction", "probability of p", "probability of q"]
    assert len(answers) == 2
    np.testing.assert_allclose(answers.iloc[:, 1:].sum(axis=1), 1.0)
    code, out, _ = run("predict", "run", "new.csv", "--point", "0")
    assert out.startswith("prediction,")
    assert run("predict", "run", "new.csv", "--point", "0", "-o", "-")[1] == out
    assert not (tmp_path / "-").exists()
    (tmp_path / "link.csv").symlink_to("out.csv")
    assert run("predict", "run", "new.csv", "--point", "0", "-o", "link.csv")[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "out.csv").read_text() == out


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (lambda p: None, ["show", "elsewhere"], "is no run folder"),
        (lambda p: (p / "summary.json").unlink(), ["show", "run"], "not finished, go on with --resume"),
        (lambda p: (p / "summary.json").write_text("{"), ["show", "run"], "is damaged"),
        (lambda p: (p / "summary.json").write_text("{}"), ["show", "run"], "another format"),
        (lambda p: (p / "model.safetensors").write_bytes(b"x" * 40), ["predict", "run", "new.csv"], "is damaged"),
        (lambda p: (p / "model.json").unlink(), ["predict", "run", "new.csv"], "does not exist"),
        (lambda p: None, ["predict", "run", "new.csv", "--point", "99"], "the front has"),
        (lambda p: (p.parent / "new.csv").write_text("a,b\n1,2\n"), ["predict", "run", "new.csv"], "the table lacks"),
    ],
)
def test_a_damaged_run_is_refused(
    finished: Path, run: Run, tmp_path: Path, damage: Callable[[Path], object], arguments: list[str], message: str
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "new.csv").write_text("city,x,noise\nRome,1.0,.5\n")
    damage(tmp_path / "run")
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


def test_the_generated_script_needs_no_pared_and_agrees(finished: Path) -> None:
    code = (
        "import sys, csv, json, importlib.util as u\n"
        "spec = u.spec_from_file_location('model', sys.argv[1]); m = u.module_from_spec(spec); spec.loader.exec_module(m)\n"
        "rows = list(csv.DictReader(open(sys.argv[2])))\n"
        "out = [m.load().predict(rows), m.load('front/00').predict(rows)]\n"
        "assert not any(name.split('.')[0] in ('pared', 'pandas', 'sklearn') for name in sys.modules)\n"
        "print(json.dumps(out))"
    )
    words = [sys.executable, "-I", "-c", code, str(finished / "run/model.py"), str(finished / "good.csv")]
    answers = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    from pared.run import Run as Opened

    opened = Opened.open(finished / "run")
    for got, point in zip(answers, (None, 0), strict=True):
        expected = opened.predict(finished / "good.csv", point=point)
        assert [a["prediction"] for a in got] == expected["prediction"].tolist()
        np.testing.assert_allclose([a["probabilities"]["p"] for a in got], expected["probability of p"], atol=1e-6)


def start(finished: Path, folder: Path, *more: str) -> tuple[list[str], subprocess.Popen[str]]:
    """Start the finished run's twin in `folder` and wait until it has begun to shrink."""
    words = [
        sys.executable,
        "-m",
        "pared",
        "fit",
        str(finished / "good.csv"),
        "--target",
        "y",
        "--out",
        "run",
        "--hidden",
        "8,8",
        "--lr",
        "0.02",
        *more,
    ]
    # Where the tests themselves run in the background of a shell, interrupts would be ignored.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        words, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=listening
    )
    while process.poll() is None and not (folder / "run/checkpoints/shrink.safetensors").exists():
        pass
    return words, process


def test_killed_runs_resume_bit_equally(finished: Path, tmp_path: Path) -> None:
    """kill -9 in the middle, then --resume: the same weights as the run that was left alone."""
    words, process = start(finished, tmp_path, "--epochs", "30")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run([*words, "--resume", "--quiet"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = (sorted(p.rglob("*.safetensors")) for p in (finished / "run", tmp_path / "run"))
    assert [p.name for p in first] == [p.name for p in second]
    for mine, other in zip(first, second, strict=True):
        assert mine.read_bytes() == other.read_bytes()
    lines = [(p / "run/metrics.jsonl").read_text().splitlines() for p in (finished, tmp_path)]
    strip = [[{**json.loads(line), "seconds": 0} for line in part] for part in lines]
    assert strip[0] == strip[1]


def test_what_was_cut_off_after_the_summary_is_done_on_resuming(finished: Path, run: Run, tmp_path: Path) -> None:
    shutil.copy(finished / "good.csv", tmp_path)
    words = ("fit", "good.csv", "--target", "y", "--hidden", "8,8", "--epochs", "30", "--lr", "0.02", "--quiet")
    whole = tmp_path / "run"
    shutil.copytree(finished / "run", whole)
    (whole / "report.html").write_text("of an interrupted run")
    (whole / "card.md").unlink()
    (whole / ".report.html.partial").write_text("<!doc")
    (whole / "checkpoints").mkdir()
    (whole / "checkpoints/dense.safetensors").write_bytes(b"")
    assert run(*words, "--out", whole, "--resume")[0] == 0
    assert {p.name for p in whole.iterdir()} == {p.name for p in (finished / "run").iterdir()}
    assert (whole / "report.html").read_text() == (finished / "run/report.html").read_text()
    assert run(*words, "--out", whole, "--resume")[0] == 0
    assert not (whole / "checkpoints").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_saves_the_front_so_far_and_can_be_resumed(
    number: signal.Signals, code: int, finished: Path, tmp_path: Path
) -> None:
    _, process = start(finished, tmp_path, "--epochs", "2000")
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == code
    assert "interrupted: writing the front so far; resuming goes on" in err
    assert "with --resume goes on" in err
    assert "Traceback" not in err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["interrupted"]
    assert summary["front"]
    assert (tmp_path / "run/report.html").exists()
    assert (tmp_path / "run/checkpoints/shrink.safetensors").exists()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("pared.fitting.ask", "pared: interrupted; the same command starts again"),
        ("pared.fitting.learn_front", "every finished epoch is kept in run; the same with --resume"),
    ],
)
def test_an_interrupt_at_any_time_is_answered(
    where: str, words: str, finished: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    shutil.copy(finished / "good.csv", tmp_path)
    monkeypatch.setattr(where, stopped)
    code, _, err = run("fit", "good.csv", "--target", "y", "--out", "run", *QUICK)
    assert code == 130
    assert words in err


def test_too_few_steps_a_taken_file_and_damaged_checkpoints(finished: Path, run: Run, tmp_path: Path) -> None:
    shutil.copy(finished / "good.csv", tmp_path)
    code, _, err = run("fit", "good.csv", "--target", "y", "--out", "good.csv/run", *QUICK)
    assert (code, "cannot be created" in err) == (2, True)
    words = ("fit", "good.csv", "--target", "y", "--out", "run", *QUICK)
    code, _, err = run(*words, "--quiet")
    assert code == 0
    assert "can hardly bring a switch from 1 to 0" in err
    (tmp_path / "run/summary.json").unlink()
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "run/checkpoints/dense.safetensors").write_bytes(b"not a checkpoint at all")
    code, _, err = run(*words, "--resume")
    assert (code, "cannot be read as a checkpoint" in err) == (2, True)


def test_help_and_import_are_light() -> None:
    code = "import sys; from typer.testing import CliRunner; from pared.cli.app import app; r = CliRunner().invoke(app, ['fit', '--help']); assert r.exit_code == 0, r; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, pared; assert 'torch' not in sys.modules; pared.Shrink; import torch; assert not {'pandas', 'sklearn', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_tells_the_defaults_of_the_settings() -> None:
    text = " ".join(CliRunner().invoke(cli.app, ["fit", "--help"]).output.split())
    told = dict(re.findall(r"--([a-z-]+) <\w+>(?:(?! --[a-z]).)*?\[default: ([^\]]+)\]", text))
    settings = Settings()
    for name in ("hidden", "lr", "weight_decay", "strength", "select", "seed", "device", "threads"):
        value = getattr(settings, name)
        wanted = ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else f"{value}"
        assert told[name.replace("_", "-")] == wanted, name
