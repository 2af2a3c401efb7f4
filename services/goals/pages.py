"""The HTML pages and the three forms that they send."""

import contextlib
import mimetypes
from collections.abc import Mapping
from datetime import date
from itertools import groupby
from types import MappingProxyType

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from goals import store
from goals.database import Database
from goals.errors import (
    DatabaseUnavailableError,
    GoalChangedError,
    GoalNotFoundError,
    GoalRemovedError,
    IdempotencyKeyReusedError,
    InvalidInputError,
    OverloadedError,
)
from goals.models import Goal, Listing, Page, Total
from goals.requests import read_form
from goals.responses import STANDBY, STATIC, SharedPage, answer, render, show, static_url
from goals.schemas import (
    NAME_LENGTH,
    PAGE_SIZE,
    ChangeForm,
    GoalBody,
    GoalForm,
    GoalPath,
    PageQuery,
    RemovalForm,
    new_form_key,
    parse_fields,
    validate,
)
from goals.state import State

_SHARED_FROM = 16 * 1024
"""From this size in bytes on, a second ASGI message costs less than a copy of the page for each slow reader."""
_UNKNOWN_VERSION = 0
"""A version that no row has."""
_FORM_KEY_PLACEHOLDER = "\0"
"""Marks the place of each reader's form key in a shared page; PostgreSQL's text cannot contain it, so no name does."""


async def get_page(request: Request[State]) -> Response:
    fields = parse_fields(request.scope["query_string"])
    # Ignore the parameters of others, such as those of a newsletter's links.
    query = validate(PageQuery, {name: fields[name] for name in fields.keys() & PageQuery.model_fields.keys()})
    listings = request.state["pages"]
    listing = await listings.get((query.before, query.after))
    if query.after is not None and not listing.page.more:
        # There is nothing newer: the reader wants the complete first page.
        listing = await listings.get((None, None))
    own = listing.head + new_form_key().encode()
    headers = STANDBY if listing.page.standby else {}
    if len(listing.tail) > _SHARED_FROM:
        return SharedPage(own, listing.tail, headers)
    return show(own + listing.tail, headers=headers)


async def load_page(database: Database, key: tuple[int | None, int | None]) -> Listing:
    """Read and render a page, `(before, after)`, once for all concurrent requests for it."""
    before, after = key
    page, total = await store.select_page_and_total(database, before=before, after=after, limit=PAGE_SIZE)
    head, tail = (
        _render(before, after, page, total, form_key=_FORM_KEY_PLACEHOLDER)
        .encode()
        .split(_FORM_KEY_PLACEHOLDER.encode())
    )
    return Listing(page, total, head, tail)


async def post_goal(request: Request[State]) -> Response:
    """Add a goal and redirect to the page.

    An invalid form is returned with the reason. If the goal could not be stored, the form is returned so that it can be
    sent again without retyping it.
    """
    fields = await read_form(request)
    key = fields.get("idempotency_key", new_form_key())
    typed = _typed(fields)
    errors: dict[str, str] = {}
    status = 422
    try:
        try:
            form = validate(GoalForm, {**fields, "idempotency_key": key})
            values = form.model_dump(include=set(GoalBody.model_fields))
            await request.state["writes"].add(values, form.idempotency_key, form.fingerprint())
        except InvalidInputError as error:
            message, errors = _explain(error)
        except IdempotencyKeyReusedError:
            message = "This form has already added another goal. Send it again to add this one too."
        except GoalRemovedError:
            message, status, typed = "This goal was added, but has been removed since.", 410, {}
        else:
            return _see_page()
        first = await request.state["pages"].get((None, None))
    except (DatabaseUnavailableError, OverloadedError) as error:
        # With the same key, so that a repeat after an unknown outcome adds no second goal.
        again = {**typed, "idempotency_key": key} if any(typed.values()) else None
        return answer(request.scope, error, retry_form=again)
    page = _render(None, None, first.page, first.total, typed=typed, message=message, errors=errors)
    return show(page, status, STANDBY if first.page.standby else None)


async def get_goal(request: Request[State]) -> Response:
    """Show a goal for editing."""
    goal, standby = await request.state["goals"].get(validate(GoalPath, request.path_params).goal_id)
    # A standby's version may be undone and its number reused. Without a version, the primary's goal is shown on save.
    return _show_goal(goal._asdict(), _UNKNOWN_VERSION if standby else goal.row_version, standby=standby)


async def post_change(request: Request[State]) -> Response:
    """Change a goal and redirect to the page, unless someone else has changed it since: then show both texts.

    As with a new goal, the typed text is returned if it could not be stored.
    """
    goal_id = validate(GoalPath, request.path_params).goal_id
    fields = await read_form(request)
    typed, version = _typed(fields), fields.get("row_version", "")
    try:
        form = validate(ChangeForm, fields)
    except InvalidInputError as error:
        message, errors = _explain(error)
        return _show_goal(typed, version, 422, message=message, errors=errors)
    try:
        try:
            other = await _change(request.state["database"], goal_id, form)
        except GoalNotFoundError:
            message = "Someone has removed this goal. Your text is in the field: add it as a new goal, or discard it."
            first = await request.state["pages"].get((None, None))
            page = _render(None, None, first.page, first.total, typed=typed, message=message)
            return show(page, 404, STANDBY if first.page.standby else None)
    except (DatabaseUnavailableError, OverloadedError) as error:
        return answer(request.scope, error, retry_form={**typed, "row_version": version})
    if other is None:
        return _see_page()
    return _show_goal(typed, other.row_version, 409, other=other, unseen=form.row_version == _UNKNOWN_VERSION)


async def _change(database: Database, goal_id: int, form: ChangeForm) -> Goal | None:
    """Change a goal; if someone else has changed it since, return their version."""
    values = form.model_dump(include=set(GoalBody.model_fields), exclude_unset=True)
    try:
        await store.update_goal(database, goal_id, values, seen=form.row_version)
    except GoalChangedError:
        now = await store.select_goal(database, goal_id)
        # A repeat may find its own earlier change, which is no conflict.
        return None if values.items() <= now._asdict().items() else now
    return None


async def post_removal(request: Request[State]) -> Response:
    """Remove a goal and redirect to the page; a goal that is already removed is not an error."""
    form = validate(RemovalForm, await read_form(request))
    with contextlib.suppress(GoalNotFoundError):
        await store.delete_goal(request.state["database"], form.goal_id)
    return _see_page()


async def get_static(request: Request[State]) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        raise HTTPException(404)
    media_type, _ = mimetypes.guess_type(name)
    # During a rollout, a page of another version requests its own files: browsers must not keep ours at that address.
    is_ours = request.url.query == static_url(name).partition("?")[2]
    cache_control = "public, max-age=31536000, immutable" if is_ours else "no-cache"
    return Response(STATIC[name], headers={"cache-control": cache_control}, media_type=media_type)


def _typed(fields: Mapping[str, str]) -> dict[str, str]:
    """Return the form's fields that a person typed."""
    return {name: fields[name] for name in GoalBody.model_fields if name in fields}


def _explain(error: InvalidInputError) -> tuple[str, dict[str, str]]:
    """Return the message for the page, and the message for each invalid field."""
    errors = {name: text for name, text in error.fields.items() if name in GoalBody.model_fields}
    return " ".join(errors.values()) or str(error), errors


def _see_page() -> Response:
    return RedirectResponse("/", 303)


def _show_goal(
    typed: Mapping[str, object],
    version: int | str,
    status: int = 200,
    *,
    message: str | None = None,
    errors: Mapping[str, str] = MappingProxyType({}),
    other: Goal | None = None,
    unseen: bool = False,
    standby: bool = False,
) -> Response:
    """Return a goal's page; `other` is what someone else has saved meanwhile, or what is still `unseen`."""
    page = render(
        "goal.html",
        typed=typed,
        row_version=version,
        message=message,
        errors=errors,
        other=other,
        unseen=unseen,
        standby=standby,
    )
    return show(page, status, STANDBY if standby else None)


def _render(
    before: int | None,
    after: int | None,
    page: Page,
    total: Total,
    *,
    form_key: str | None = None,
    typed: Mapping[str, str] = MappingProxyType({}),
    message: str | None = None,
    errors: Mapping[str, str] = MappingProxyType({}),
) -> str:
    older, newer = _neighbours(before, after, page)
    return render(
        "goals.html",
        goals=page.goals,
        standby=page.standby,
        days=[(day, list(rows)) for day, rows in groupby(page.goals, _day)],
        total_text=_describe(total),
        older=older,
        newer=newer,
        form_key=form_key or new_form_key(),
        typed=typed,
        message=message,
        errors=errors,
        max_length=NAME_LENGTH,
    )


def _day(goal: Goal) -> date | None:
    return goal.created_at and goal.created_at.date()


def _neighbours(before: int | None, after: int | None, page: Page) -> tuple[str | None, str | None]:
    """Return the addresses of the next older and the next newer page."""
    if not page.goals:
        return None, None if before is None else "/"
    has_older = page.more if after is None else True
    has_newer = before is not None if after is None else page.more
    older = f"/?before={page.goals[-1].id}" if has_older else None
    newer = f"/?after={page.goals[0].id}" if has_newer else None
    return older, newer


def _describe(total: Total) -> str:
    if total.number is None:
        return f"more than {store.EXACT_COUNT:,} goals"
    if not total.exact:
        return f"about {float(f'{total.number:.3g}'):,.0f} goals"
    if total.number == 0:
        return "no goals yet"
    return "1 goal" if total.number == 1 else f"{total.number:,} goals"
