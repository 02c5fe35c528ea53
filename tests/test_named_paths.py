"""What a person names is written without becoming something else."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import pared
from pared.errors import RunError
from pared.storage import write_named


def test_a_link_is_followed_and_the_mode_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link, other = tmp_path / "real" / "file", tmp_path / "link", tmp_path / "other"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to("real/file")
    other.symlink_to("link")
    write_named(other, "new")
    assert link.is_symlink()
    assert other.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(target.parent) == ["file"]
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "later" / "file")
    write_named(dangling, b"x")
    assert dangling.is_symlink()
    assert (tmp_path / "later" / "file").read_text() == "x"


def test_a_hard_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a longer text")
    os.link(tmp_path / "a", tmp_path / "b")
    write_named(tmp_path / "a", "new")
    assert (tmp_path / "b").read_text() == "new"
    assert (tmp_path / "a").samefile(tmp_path / "b")


def test_a_new_file_has_the_usual_mode_and_any_name(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    longest = tmp_path / ("n" * 255)
    write_named(longest, "x")
    assert longest.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(RunError, match="name too long"):
        write_named(tmp_path / ("n" * 256), "x")


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_named(pipe, b"z" * 200_000)
    reader.join()
    assert read == [b"z" * 200_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_named(Path("/dev/null"), "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_an_open_descriptor_is_appended_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    code = f"from pathlib import Path; from pared.storage import write_named; write_named(Path({name!r}), 'after\\n')"
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before\nafter\n"


def test_what_cannot_be_written_is_said_and_stays(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path, loop, Path("/dev/full")):
        with pytest.raises(RunError, match="could not be written"):
            write_named(path, "x")
    assert loop.is_symlink()


def test_networks_are_saved_and_exported_through_links(tmp_path: Path) -> None:
    net = nn.Linear(2, 1)
    for name in ("net.safetensors", "net.pt2"):
        (tmp_path / f"real-{name}").touch(0o640)
        (tmp_path / name).symlink_to(f"real-{name}")
    pared.save(net, tmp_path / "net.safetensors")
    pared.export(net, tmp_path / "net.pt2", torch.randn(2, 2))
    for name in ("net.safetensors", "net.pt2"):
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).stat().st_size > 0
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
