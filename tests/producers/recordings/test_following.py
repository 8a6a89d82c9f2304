from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.recordings.following import FollowedFile
from tickcast.wire.errors import InvalidRecording


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ticks.jsonl"


@pytest.fixture
def followed(path: Path) -> Iterator[FollowedFile]:
    with FollowedFile(path) as file:
        yield file


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_appended_data_is_read(path: Path, followed: FollowedFile) -> None:
    assert followed.read() is None  # There is no file yet.
    append(path, b"a\n")
    assert [followed.read(), followed.read()] == [b"a\n", None]
    append(path, b"b")
    append(path, b"c\n")
    assert [followed.read(), followed.read()] == [b"bc\n", None]


def test_a_renamed_file_is_read_to_its_end(path: Path, followed: FollowedFile) -> None:
    append(path, b"a\n")
    assert followed.read() == b"a\n"
    old = path.rename(path.with_suffix(".1"))
    append(old, b"b\n")
    assert [followed.read(), followed.read()] == [b"b\n", None]
    append(old, b"c\n")
    append(path, b"d\n")
    assert [followed.read() for _ in range(4)] == [b"c\n", b"", b"d\n", None]


def test_a_removed_file_is_followed_until_there_is_a_new_one(
    path: Path, followed: FollowedFile
) -> None:
    append(path, b"a\n")
    assert followed.read() == b"a\n"
    path.unlink()
    assert followed.read() is None
    append(path, b"b\n")
    assert [followed.read() for _ in range(3)] == [b"", b"b\n", None]


def test_a_truncated_file_is_read_from_its_beginning(path: Path, followed: FollowedFile) -> None:
    append(path, b"abc\n")
    assert followed.read() == b"abc\n"
    path.write_bytes(b"d\n")
    assert [followed.read() for _ in range(3)] == [b"", b"d\n", None]


def test_only_regular_files_can_be_followed(path: Path, followed: FollowedFile) -> None:
    os.mkfifo(path)
    with pytest.raises(InvalidRecording, match="is not a file that can be followed"):
        followed.read()


@given(st.lists(st.sampled_from(["append", "rename", "replace", "truncate", "read"])))
def test_nothing_is_lost_or_read_twice_if_the_reader_keeps_up(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    path = tmp_path_factory.mktemp("f") / "f"
    written = b""
    number = 0
    with FollowedFile(path) as followed:
        found = b""

        def catch_up() -> bytes:
            data = b""
            while (part := followed.read()) is not None:
                data += part
            return data

        for step in steps:
            number += 1
            line = b"%d\n" % number
            if step == "append":
                append(path, line)
                written += line
            elif path.exists() and step != "read":
                found += catch_up()
                if step == "truncate":
                    path.write_bytes(b"")
                    found += catch_up()
                elif step == "rename":
                    path.rename(path.with_suffix(f".{number}"))
                else:
                    path.unlink()
            else:
                found += catch_up()
        found += catch_up()
    assert found == written
