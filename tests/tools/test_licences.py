"""The licences of what is installed here, and of metadata of every age."""

import email.message
import subprocess
import sys
from pathlib import Path

import pytest

from tools import licences


def metadata(**fields: str | list[str]) -> email.message.Message:
    """Metadata as importlib.metadata gives it."""
    message = email.message.Message()
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "MIT OR Apache-2.0"}, "MIT OR Apache-2.0"),
        ({"License": "MIT License"}, "MIT"),
        ({"License": "Permission is\nhereby granted", "Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Classifier": ["Topic :: Internet", "License :: OSI Approved :: BSD License"]}, "BSD-3-Clause"),
        ({"License": "GPL-3.0-only"}, "GPL-3.0-only"),
        ({}, ""),
    ],
)
def test_a_licence_is_named_in_spdx_words(fields: dict[str, str | list[str]], licence: str) -> None:
    assert licences.licence_of(metadata(**fields)) == licence  # type: ignore[arg-type]  # importlib's own class is private


def test_every_licence_of_the_images_was_considered(capsys: pytest.CaptureFixture[str]) -> None:
    assert licences.main([]) == 0
    output = capsys.readouterr().out
    assert "starlette" in output
    assert "NOT CONSIDERED" not in output


def test_a_licence_that_was_not_considered_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(licences, "CONSIDERED", {"MIT"})
    lock = tmp_path / "lock.txt"
    lock.write_text("starlette==1.0 \\\n    --hash=sha256:0\npywin32==1 ; sys_platform == 'win32'\nh11==0.16.0\n")
    assert licences.main([str(lock)]) == 1
    output = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in output] == ["h11", "starlette"]
    assert "NOT CONSIDERED" in output[1]


def test_the_command_exits_with_what_main_returns() -> None:
    done = subprocess.run([sys.executable, "-m", "tools.licences"], capture_output=True, check=False)
    assert done.returncode == 0
