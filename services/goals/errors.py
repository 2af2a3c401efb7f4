"""What can go wrong, in the words of the domain: no HTTP and no SQL here; `responses` maps each to its answer."""


class GoalsError(Exception):
    """Base of every error this service raises on purpose; its text is safe to show to the client."""


class ConfigurationError(GoalsError):
    """A setting or the machine does not allow the service to start; the text names cause and remedy on one line."""


class InvalidInputError(GoalsError):
    """The request was understood and its content is not acceptable.

    `fields` maps the name of each bad field to one sentence that says what is wrong and what would be right. It names
    the first few; `more` counts the rest.
    """

    def __init__(self, fields: dict[str, str], *, more: int = 0) -> None:
        problems = [f"{field}: {message}" for field, message in fields.items()]
        super().__init__("; ".join([*problems, f"and {more:,} more."] if more else problems))
        self.fields = fields


class IdempotencyKeyReusedError(GoalsError):
    """The key came with another goal before, so this is not a repeat of that request."""


class GoalNotFoundError(GoalsError):
    """No goal has this id; `standby`: a standby said so, while the primary was away."""

    def __init__(self, text: str, *, standby: bool = False) -> None:
        super().__init__(text)
        self.standby = standby


class GoalRemovedError(GoalsError):
    """The key has made a goal that has been removed since, so a repeat of its request must not add it again."""


class GoalChangedError(GoalsError):
    """The goal is no longer what the client's `If-Match` says it is."""


class MalformedRequestError(GoalsError):
    """The bytes of the request do not mean anything: broken encoding, broken JSON, contradictory framing."""


class UnsupportedMediaTypeError(GoalsError):
    """The body comes in a content type, charset or encoding that this endpoint does not read."""


class TemporaryError(GoalsError):
    """Something that passes by itself: `retry_after` is in how many seconds it is worth another try."""

    def __init__(self, text: str, retry_after: int = 1) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class OverloadedError(TemporaryError):
    """More work waits for the database than can be done in time; nothing was done, try again soon."""


class LockedError(OverloadedError):
    """Another transaction holds a row for longer than the statement may wait."""


class StatementRefusedError(Exception):
    """PostgreSQL refused one of our statements: a defect of ours. The text has no values, unlike PostgreSQL's own."""


class DatabaseUnavailableError(TemporaryError):
    """The database did not answer within the time that a read or a write may take.

    A write may or may not have happened: repeating it with the same idempotency key is safe.
    """
