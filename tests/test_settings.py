"""The environment: read once, refused with the names of what is wrong, never with a secret."""

from pathlib import Path

import pytest
import trustme

from goals.errors import ConfigurationError
from goals.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_every_setting_has_a_default_and_a_description() -> None:
    assert read_settings() == Settings()
    assert all(field.description for field in Settings.model_fields.values())


def test_the_seeds_names_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "DB_USERNAME": "u",
        "DB_PASSWORD": "p",
        "DB_HOST": "h",
        "DB_PORT": "1234",
        "DB_NAME": "n",
        "SSL": "disable",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert (settings.db_username, settings.db_host, settings.db_port) == ("u", "h", 1234)
    assert (settings.db_name, settings.ssl, settings.password()) == ("n", "disable", "p")


def test_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "hunter2")
    assert "hunter2" not in repr(read_settings())


def test_a_password_file_is_read_anew_and_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    monkeypatch.setenv("DB_PASSWORD", "ignored")
    monkeypatch.setenv("DB_PASSWORD_FILE", str(file))
    settings = read_settings()
    assert settings.password() == "first"
    file.write_text("second\n")
    assert settings.password() == "second"


def test_without_a_password_there_is_none() -> None:
    assert read_settings().password() is None


def test_hosts_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOALS_HOSTS", " Goals.example.com, localhost ,")
    assert read_settings().goals_hosts == ("goals.example.com", "localhost")


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "")
    assert read_settings().db_port == 5432


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PORT", "65536"),
        ("GOALS_PORT", "http"),
        ("SSL", "on"),
        ("GOALS_DRAIN_SECONDS", "-1"),
        ("GOALS_POOL_SIZE", "100"),
        ("GOALS_LOG_FORMAT", "xml"),
        ("DB_CA_FILE", "no-such-file"),
        ("DB_PASSWORD_FILE", "no-such-file"),
        ("DB_HOST", "a..b"),
        ("DB_HOST", "x" * 64),
        ("DB_HOST", "\udcff"),
        ("DB_STANDBY_HOST", "/folder"),
        ("GOALS_HOSTS", ","),
        ("GOALS_HOSTS", "localhost,goals.example.com:443"),
        ("GOALS_HOSTS", "https://goals.example.com"),
        ("GOALS_HOSTS", "::1"),
    ],
)
def test_what_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=rf"^{name}: "):
        read_settings()


@pytest.mark.parametrize("value", ["127.0.0.1", "::1", "goals-db-rw.goals.svc", "bücher.example", f"/{'x' * 80}/..s"])
def test_what_can_be_looked_up_is_a_host(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DB_HOST", value)
    assert read_settings().db_host == value


def test_an_ipv6_address_in_brackets_is_a_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOALS_HOSTS", "[::1],localhost")
    assert read_settings().goals_hosts == ("[::1]", "localhost")


@pytest.mark.parametrize(
    ("name", "reason"), [("DB_PASSWORD_FILE", "is not UTF-8 text"), ("DB_CA_FILE", "contains no readable certificate")]
)
def test_a_file_that_holds_something_else_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, reason: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"\xff\xfe")
    monkeypatch.setenv(name, str(file))
    monkeypatch.setenv("SSL", "verify-full")
    with pytest.raises(ConfigurationError, match=rf"^{name}: .*file {reason}"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "reason"), [("DB_PASSWORD_FILE", "cannot read"), ("DB_CA_FILE", "contains no readable certificate")]
)
def test_a_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, name: str, reason: str) -> None:
    # A file that not even root may read: the memory of this process, at its address 0.
    monkeypatch.setenv(name, "/proc/self/mem")
    monkeypatch.setenv("SSL", "verify-full")
    with pytest.raises(ConfigurationError, match=rf"^{name}: .*{reason}"):
        read_settings()


def test_a_certificate_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    monkeypatch.setenv("DB_CA_FILE", str(file))
    for words in ("disable", "verify-ca", "verify-full"):
        monkeypatch.setenv("SSL", words)
        assert read_settings().db_ca_file == file
    for words in ("prefer", "require"):
        monkeypatch.setenv("SSL", words)
        with pytest.raises(ConfigurationError, match=f"^DB_CA_FILE: SSL={words} does not use it"):
            read_settings()


def test_everything_that_is_wrong_is_named_at_once_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PORT", "x")
    monkeypatch.setenv("GOALS_PORT", "y")
    with pytest.raises(ConfigurationError) as refusal:
        read_settings()
    assert {"DB_PORT", "GOALS_PORT"} <= {part.partition(":")[0] for part in str(refusal.value).split("; ")}
    assert "\n" not in str(refusal.value)


def test_an_address_that_does_not_resolve_is_no_loopback_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOALS_BIND", "no such host")
    assert read_settings().loopback_hosts() == ()
