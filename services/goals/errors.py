"""The service's errors, in terms of the domain: no HTTP and no SQL; `responses` maps each one to its response."""


class GoalsError(Exception):
    """Base of every error this service raises on purpose; its text is safe to show to the client."""


class ConfigurationError(GoalsError):
    """A setting or the machine prevents the service from starting; the text states cause and remedy in one line."""


class InvalidInputError(GoalsError):
    """The request was understood, but its content is invalid.

    `fields` maps the name of each invalid field to one sentence that says what is wrong and what is allowed. It has
    the first few fields; `more` counts the rest.
    """

    def __init__(self, fields: dict[str, str], *, more: int = 0) -> None:
        problems = [f"{field}: {message}" for field, message in fields.items()]
        super().__init__("; ".join([*problems, f"and {more:,} more."] if more else problems))
        self.fields = fields


class IdempotencyKeyReusedError(GoalsError):
    """The key was used for another goal before, so this request is not a repeat of that one."""


class GoalNotFoundError(GoalsError):
    """No goal has this id; `standby`: a standby answered, because the primary was down."""

    def __init__(self, text: str, *, standby: bool = False) -> None:
        super().__init__(text)
        self.standby = standby


class GoalRemovedError(GoalsError):
    """The goal that was added with this key has been removed since; a repeat of the request must not add it again."""


class GoalChangedError(GoalsError):
    """The goal no longer matches the client's `If-Match`."""


class MalformedRequestError(GoalsError):
    """The request cannot be parsed: broken encoding, broken JSON, contradictory framing."""


class UnsupportedMediaTypeError(GoalsError):
    """The body has a content type, charset or encoding that this endpoint does not accept."""


class TemporaryError(GoalsError):
    """A temporary condition; `retry_after` is the number of seconds after which a retry may succeed."""

    def __init__(self, text: str, retry_after: int = 1) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class OverloadedError(TemporaryError):
    """More work waits for the database than it can do in time; nothing was done, try again soon."""


class LockedError(OverloadedError):
    """Another transaction holds a row for longer than the statement may wait."""


class StatementRefusedError(Exception):
    """PostgreSQL refused one of our statements, which is a bug. Unlike PostgreSQL's, the text contains no values."""


class DatabaseUnavailableError(TemporaryError):
    """The database did not answer within the time that a read or a write may take.

    A write may or may not have happened: repeating it with the same idempotency key is safe.
    """
