"""All settings of the service, read once from the environment and validated at start."""

import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, HttpUrl, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from goals.errors import ConfigurationError


class Settings(BaseSettings):
    """The environment: each field is the variable of the same name in capitals; an empty variable counts as unset."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    db_host: str | None = Field(None, description="PostgreSQL host; unset means the embedded server")
    db_port: int = Field(5432, ge=1, le=65535, description="PostgreSQL port")
    db_name: str = Field("goals_database", description="Database name")
    db_username: str = Field("goals_user", description="Role that owns the table `goals`")
    db_password: SecretStr | None = Field(None, description="Password of the role")
    db_password_file: Path | None = Field(
        None, description="File that contains the password, read again for each new connection; overrides `DB_PASSWORD`"
    )
    ssl: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        "prefer", description="TLS mode of connections to PostgreSQL: a value of libpq's `sslmode`"
    )
    db_ca_file: Path | None = Field(
        None,
        description="CA certificate for `SSL=verify-ca` and `verify-full`; unset means the system's CA certificates",
    )

    db_standby_host: str | None = Field(
        None,
        description="Host name that resolves to all PostgreSQL servers, including the primary: a standby serves reads "
        "while the primary is down; unset means that only the primary serves reads",
    )
    db_standby_replies: int | None = Field(
        None,
        ge=1,
        description="Number of servers that must reply before a standby serves a read: n - k + 1 if a commit waits for "
        "k of n standbys; unset means that no standby serves reads",
    )

    goals_bind: str = Field("127.0.0.1", description="Address of both listeners; `0.0.0.0` in a container")
    goals_port: int = Field(8080, ge=0, le=65535, description="Port for the page and the API; 0 lets the kernel choose")
    goals_ops_port: int = Field(
        9464, ge=0, le=65535, description="Port for probes and metrics; 0 lets the kernel choose"
    )
    goals_max_connections: int | None = Field(
        None,
        ge=1,
        description="Maximum number of connections to the page and the API; unset means as many as file descriptors "
        "and memory allow",
    )
    goals_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Host names that the page and the API accept, separated by commas; unset means any, "
        "or only loopback names if `GOALS_BIND` is a loopback address",
    )
    goals_drain_seconds: float = Field(
        6.0,
        ge=0,
        le=300,
        description="Seconds between SIGTERM and the shutdown; meanwhile, responses have a `Connection: close` header",
    )
    goals_pool_size: int = Field(
        10, ge=5, le=10, description="Number of connections to PostgreSQL, all opened at startup"
    )
    goals_key_hours: float = Field(
        24.0, gt=0, le=24 * 365, description="Hours for which a repeated `Idempotency-Key` is recognised"
    )
    goals_write_wait_seconds: float = Field(
        15.0,
        ge=0,
        le=15,
        description="Seconds that a write waits for the primary during a failover; at least 3, except for `migrate`",
    )
    goals_hsts: bool = Field(
        default=False, description="Send `Strict-Transport-Security`; set this only with a publicly trusted certificate"
    )
    goals_log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="`json`, or `console` for people; `auto` means `console` on a terminal and `json` elsewhere",
    )
    otel_exporter_otlp_endpoint: HttpUrl | None = Field(
        None,
        description="Base URL of a trace collector (OTLP over HTTP); unset means no traces",
    )
    goals_revision: str = Field("unknown", description="Commit of the build, shown by `/version`")

    @field_validator("goals_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        hosts = tuple(host.strip().lower() for host in value.split(",") if host.strip())
        if not hosts:
            raise ValueError("it contains no host name; unset it to accept any")
        if any(":" in host and not (host.startswith("[") and host.endswith("]")) for host in hosts):
            raise ValueError("write host names without a port or https://, and an IPv6 address in [brackets]")
        return hosts

    @field_validator("db_host", "db_standby_host")
    @classmethod
    def _can_be_looked_up(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and value.startswith("/") and info.field_name == "db_standby_host":
            raise ValueError(
                "this is a folder; set a host name that resolves to all servers, such as that of a headless Service"
            )
        try:
            if value is not None and not value.startswith("/"):
                value.encode("idna")  # as the look-up does
        except UnicodeError:
            raise ValueError("this is not a host name; a part of it is empty, too long or unreadable") from None
        return value

    @model_validator(mode="after")
    def _has_readable_files(self) -> Self:
        for name in ("db_password_file", "db_ca_file"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name.upper()}: {path} is not a file; mount it or unset the variable")
        # `disable` is explicit about verifying nothing; the other values look as if something were verified.
        if self.db_ca_file is not None and self.ssl not in {"disable", "verify-ca", "verify-full"}:
            raise ValueError(f"DB_CA_FILE: SSL={self.ssl} does not use it; set SSL=verify-full, or unset DB_CA_FILE")
        try:
            self.password()
        except OSError as error:
            raise ValueError(
                f"DB_PASSWORD_FILE: cannot read {error.filename} ({error.strerror}); let this account read it"
            ) from None
        except UnicodeDecodeError:
            raise ValueError(f"DB_PASSWORD_FILE: {self.db_password_file} is not UTF-8 text") from None
        try:
            if self.db_ca_file is not None:
                ssl.create_default_context(cafile=self.db_ca_file)
        except OSError:
            raise ValueError(f"DB_CA_FILE: {self.db_ca_file} contains no readable certificate (PEM)") from None
        return self

    def loopback_hosts(self) -> tuple[str, ...]:
        """Return the allowed values of Host if `GOALS_BIND` is a loopback address, or none for any other address.

        Another site's DNS name may also resolve to 127.0.0.1, and its page would then pass as ours (DNS rebinding).
        Only browsers can be misled like that, and they always send a Host.
        """
        try:
            found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(self.goals_bind, None)}
        except (OSError, UnicodeError):
            return ()  # the listener will report it
        addresses = [ipaddress.ip_address(address) for address in found]
        if not all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in addresses):
            return ()
        own = self.goals_bind.lower()
        return ("", "localhost", "127.0.0.1", "[::1]", f"[{own}]" if ":" in own else own)

    def password(self) -> str | None:
        """Return the current database password; replacing the mounted file rotates it."""
        if self.db_password_file is not None:
            return self.db_password_file.read_text(encoding="utf-8").rstrip("\r\n")
        return None if self.db_password is None else self.db_password.get_secret_value()


def read_settings() -> Settings:
    """Read the environment; a `ConfigurationError` names every invalid variable in one line, without its value."""
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            f"{str(problem['loc'][0]).upper()}: {problem['msg']}" if problem["loc"] else problem["msg"]
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("; ".join(problems).replace("Value error, ", "")) from None
