"""`tickcast config` and `tickcast completion`."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import Shell
from tickcast.settings import Settings


def test_config_shows_each_value_with_its_source(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tickcast.toml"
    file.write_text('port = 9000\nfeeds = ["live", "demo"]\nlog_level = "warning"\n')
    monkeypatch.setenv("TICKCAST_PORT", "9001")
    code, out, _ = shell.run("config", "--config", file)
    assert code == 0
    sources = dict(line.rsplit("  # ", 1) for line in out.splitlines())
    assert {line.strip(): source for line, source in sources.items()} == {
        "port = 9001": "TICKCAST_PORT",
        'feeds = ["live", "demo"]': str(file),
        'log_level = "warning"': str(file),
        next(line.strip() for line in sources if "runtime_dir" in line): "TICKCAST_RUNTIME_DIR",
    }


def test_config_with_all_is_a_complete_file_of_settings(shell: Shell, tmp_path: Path) -> None:
    code, out, _ = shell.run("config", "--all")
    assert code == 0
    file = tmp_path / "all.toml"
    file.write_text(out)
    values = tomllib.loads(out)
    assert {line.removeprefix("# ").split(" =")[0] for line in out.splitlines()} == set(
        Settings.__struct_fields__
    )
    assert values["history_ticks"] == 10_000
    assert shell.run("config", "--all", "--config", file).code == 0


def test_config_hides_secrets(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKCAST_REDIS_URL", "redis://user:s3cret@127.0.0.1")
    monkeypatch.setenv("TICKCAST_METRICS_TOKEN", "s3cret-s3cret-s3cret")
    code, out, err = shell.run("config")
    assert code == 0
    assert "s3cret" not in out + err
    assert "redis_url" in out


def test_bash_completes_commands_and_options(shell: Shell) -> None:
    script = shell.run("completion", "bash").out
    program = Path(sys.executable).parent
    asking = (
        f'PATH="{program}:$PATH"\n{script}\nCOMP_WORDS=(tickcast re) COMP_CWORD=1\n'
        '_tickcast_completion tickcast re\necho "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", asking], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["replay", "replayctl", "record"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: Shell, name: str) -> None:
    code, out, _ = shell.run("completion", name)
    assert code == 0
    assert f"_TICKCAST_COMPLETE={name}_complete" in out
