"""Sets of the Fernández-Delgado archive: whole, damaged, and the real ones where they are."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import write_table, write_uci
from pared.data.uci import RAW, read_uci, uci_sets
from pared.errors import ConfigError, DataError


def test_a_set_with_one_table(tmp_path: Path) -> None:
    (x,) = write_uci(tmp_path / "noise")
    found = read_uci(tmp_path / "noise")
    assert (found.name, found.classes, found.fixed_test) == ("noise", 2, None)
    assert (found.x.dtype, found.y.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(found.x, torch.from_numpy(x).float())
    assert found.y.tolist() == [0, 1] * 20
    assert [len(part) for part in found.tuning] == [20, 20]
    assert [[len(part) for part in pair] for pair in found.folds] == [[30, 10]] * 4
    lines = (tmp_path / "noise" / "conxuntos_kfold.dat").read_text().splitlines()
    assert found.folds[2][1].tolist() == sorted(map(int, lines[5].split()))


@pytest.mark.parametrize("fold", [0, 3, "tuning"])
@pytest.mark.parametrize("rows", [(40,), (40, 7)])
def test_splits_are_partitions_drawn_by_the_seed_alone(tmp_path: Path, rows: tuple[int, ...], fold: Any) -> None:
    write_uci(tmp_path / "noise", rows=rows)
    found, state = read_uci(tmp_path / "noise"), torch.get_rng_state()
    train, validation, test = found.split(fold=fold, seed=5)
    again, other = found.split(fold=fold, seed=5), found.split(fold=fold, seed=6)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip((train, validation, test), again, strict=True))
    assert not torch.equal(validation, other[1])
    assert torch.equal(test, other[2])
    fixed = found.fixed_test if fold != "tuning" else None
    expected = found.tuning[1] if fold == "tuning" else found.folds[fold][1] if fixed is None else torch.arange(40, 47)
    assert torch.equal(test, expected)
    kept = 20 if fold == "tuning" else 30 if fixed is None else 40
    assert len(validation) == round(0.15 * kept)
    everything = torch.cat([train, validation, test]).sort().values
    assert torch.equal(everything, torch.arange(40 if fixed is None else 47))
    assert all(torch.equal(part, part.sort().values) for part in (train, validation, test))


def test_splits_out_of_range_are_refused(tmp_path: Path) -> None:
    write_uci(tmp_path / "noise")
    found = read_uci(tmp_path / "noise")
    assert len(found.split(seed=0, validation=0.0)[1]) == 0
    wrong: Any = "half"
    for fold in (4, -1, wrong):
        with pytest.raises(ConfigError, match="fold must be 0 to 3"):
            found.split(fold=fold, seed=0)
    for validation in (1.0, -0.1):
        with pytest.raises(ConfigError, match="validation is a share"):
            found.split(validation=validation, seed=0)


def test_rows_of_the_test_table_follow_as_they_are(tmp_path: Path) -> None:
    first, second = write_uci(tmp_path / "noise", rows=(40, 8))
    found = read_uci(tmp_path / "noise")
    torch.testing.assert_close(found.x, torch.from_numpy(np.concatenate([first, second])).float())
    assert found.fixed_test is not None
    assert found.fixed_test.tolist() == list(range(40, 48))


@pytest.mark.parametrize("name", sorted(RAW))
def test_a_test_table_as_measured_gets_what_the_training_table_got(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    standardised, _ = write_uci(folder, rows=(40, 8))
    mean, deviation = np.array([5.0, -3.0, 100.0]), np.array([2.0, 0.5, 30.0])
    y, measured = np.arange(40) % 2, standardised * deviation + mean
    with_constant = np.insert(measured, 1, 9.0, axis=1)
    named = name == "image-segmentation"
    rows = [f"GRASS,{','.join(map(str, r))}" if named else f"{' '.join(map(str, r))} 1" for r in with_constant.tolist()]
    write_table(folder / f"{name}_test_R.dat", measured[:8] + 1, y[:8])
    with pytest.raises(DataError, match=re.escape(RAW[name])):
        read_uci(folder)
    (folder / RAW[name]).write_text("\n".join(rows) + "\n")
    found = read_uci(folder)
    torch.testing.assert_close(found.x[40:], torch.from_numpy(standardised[:8] + 1 / deviation).float())
    for garbage in ("", ("a " if named else "") + "1 x 3 4\n", "1 2 3\n1 2\n"):
        (folder / RAW[name]).write_text(garbage)
        with pytest.raises(DataError, match="expected rows of numbers and a class"):
            read_uci(folder)
    (folder / RAW[name]).write_text("\n".join("q" * named + " 1 2 3 4" for _ in range(4)))
    with pytest.raises(DataError, match="3 inputs that vary, got 0"):
        read_uci(folder)


def test_another_test_table_as_measured_is_refused(tmp_path: Path) -> None:
    write_uci(tmp_path / "noise", rows=(40, 8))
    write_table(tmp_path / "noise" / "noise_test_R.dat", np.full((8, 3), 7.0), np.arange(8) % 2)
    with pytest.raises(DataError, match="not standardised"):
        read_uci(tmp_path / "noise")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("noise.txt", None, None, "cannot be read"),
        ("noise_R.dat", None, None, "cannot be read"),
        ("conxuntos.dat", None, None, "cannot be read"),
        ("noise.txt", "n_entradas= 3", "n_entradas= three", "n_entradas= with a number"),
        ("noise.txt", "n_clases= 2\n", "", "n_clases= with a number"),
        ("noise.txt", "n_entradas= 3", "n_entradas= 4", "rows of 6 numbers .row, 4 inputs, class., got 5 in line 2"),
        ("noise.txt", "n_clases= 2", "n_clases= 3", "have 2 classes, noise.txt says 3"),
        ("noise.txt", "n_clases= 2", "n_clases= 1", "classes 0 to 0"),
        ("noise.txt", "n_patrons1= 40", "n_patrons1= 41", "40 rows, noise.txt says 41"),
        ("noise.txt", "n_patrons_valida= 20", "n_patrons_valida= 19", "halves of 20, 20 rows, noise.txt says 20, 19"),
        ("noise.txt", "fich1= noise_R.dat", "fich1= ", "cannot be read"),
        ("noise_R.dat", "\n1\t", "\n2\t", "row's number"),
        ("noise_R.dat", "\n1\t", "\none\t", "no number"),
        ("noise_R.dat", "\n1\t", "\nnan\t", "finite"),
        ("noise_R.dat", "\t0\n", "\t0.5\n", "classes 0 to 1"),
        ("noise_R.dat", "\n1\t", "\n1\t1\t", "got 6 in line 2"),
        ("conxuntos.dat", " ", " x ", "something else than row numbers"),
        ("conxuntos.dat", " ", " 1 ", "lines 1 and 2: expected each of the rows 0 to 39 once, got 41"),
        ("conxuntos_kfold.dat", "\n", " ", "8 lines of row numbers, got 7"),
    ],
)
def test_damaged_sets_are_refused(tmp_path: Path, file: str, old: str | None, new: str | None, message: str) -> None:
    write_uci(tmp_path / "noise")
    path = tmp_path / "noise" / file
    if old is None or new is None:
        path.unlink()
    else:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_uci(tmp_path / "noise")


def test_garbage_is_refused(tmp_path: Path) -> None:
    write_uci(tmp_path / "noise")
    (tmp_path / "noise" / "noise_R.dat").write_bytes(b"\xff\xfe\0" * 9)
    with pytest.raises(DataError, match="cannot be read"):
        read_uci(tmp_path / "noise")
    (tmp_path / "noise" / "noise_R.dat").write_text("")
    with pytest.raises(DataError, match="no rows"):
        read_uci(tmp_path / "noise")


def test_sets_are_those_whose_tables_are_there(tmp_path: Path) -> None:
    write_uci(tmp_path / "two", rows=(40, 8))
    write_uci(tmp_path / "one")
    write_uci(tmp_path / "bare")
    (tmp_path / "bare" / "bare_R.dat").unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "file").touch()
    assert uci_sets(tmp_path) == ["one", "two"]
    assert uci_sets(tmp_path / "absent") == []


@pytest.mark.slow
def test_the_real_sets(public: Callable[[str], Path]) -> None:
    folder = public("uci")
    names = uci_sets(folder)
    assert len(names) == 44
    with pytest.raises(DataError, match="miniboone_R.dat cannot be read"):
        read_uci(folder / "miniboone")
    sizes = {}
    for name in names:
        found = read_uci(folder / name)
        train, validation, test = found.split(seed=0)
        sizes[name] = (*found.x.shape, found.classes, len(train), len(validation), len(test))
        assert len(torch.bincount(found.y)) == found.classes
        own = found.x if found.fixed_test is None else found.x[: -len(found.fixed_test)]
        assert own.mean(0).abs().max() < 1e-3
        torch.testing.assert_close(own.std(0), torch.ones(found.x.shape[1]), atol=1e-3, rtol=0)
        if name in RAW:  # the nearest training row is of the right class, as far as these inputs tell
            nearest = torch.cdist(found.x[test], own).argmin(1)
            right = (found.y[nearest] == found.y[test]).float().mean().item()
            assert right > {"hill-valley": 0.5, "image-segmentation": 0.88}[name]
    assert sizes["abalone"] == (4177, 8, 3, 2663, 470, 1044)
    assert sizes["adult"] == (48842, 14, 2, 27677, 4884, 16281)
    assert sizes["image-segmentation"] == (2310, 18, 7, 178, 32, 2100)
    assert sizes["plant-texture"] == (1599, 64, 100, 1019, 180, 400)
