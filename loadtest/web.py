"""The web UI: a page for running a scenario and reading its verdict, in front of Locust's, closed to other sites."""

import json
from collections.abc import Callable, Iterable
from html import escape
from typing import Any
from urllib.parse import urlsplit

from flask import Response
from locust.runners import STATE_INIT, STATE_RUNNING, STATE_SPAWNING, STATE_STOPPING
from locust.web import WebUI

from loadtest.pages import write_page
from loadtest.report import write_verdict
from loadtest.scenario import ScenarioError, list_scenarios, read_scenario
from loadtest.session import Session

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ANYWHERE = {"", "*", "0.0.0.0", "::"}  # noqa: S104  nothing is bound here: these are compared
_PORTS = {"http": 80, "https": 443}
_SAFE = {"GET", "HEAD"}


def find_foreign(environ: dict[str, Any], hosts: Iterable[str]) -> str | None:
    """Return in one line why a request may come from another site; `None` if it does not.

    Browsers identify the site by `Host`, `Origin` and `Sec-Fetch-Site`, or, if they are old, only by `Referer`. A link
    on another site may lead here, but it can only show a page.
    """
    host = str(environ.get("HTTP_HOST", ""))
    name = _split(f"//{host}")
    if name is None or name[0] not in hosts:
        return f"Host is {host!r}, which is not a name of this web UI; add it with --web-allowed-hosts"
    origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
    if origin is not None and not _is_same(origin, host):
        return f"Origin is {origin!r}, while Host is {host!r}"
    if site is not None:
        leads_here = (
            environ["REQUEST_METHOD"] in _SAFE
            and origin is None
            and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
            and environ.get("HTTP_SEC_FETCH_DEST") == "document"
        )
        return None if site in {"same-origin", "none"} or leads_here else f"Sec-Fetch-Site is {site!r}"
    referer = environ.get("HTTP_REFERER")
    if origin is None and referer is not None and not _is_same(referer, host):
        return f"Referer is {referer!r}, while Host is {host!r}"
    return None


def _split(address: str) -> tuple[str, int | None] | None:
    """Return host and port of an address, with the scheme's port by default; `None` if it is not an address."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or "@" in parts.netloc:
        return None
    return parts.hostname, port or _PORTS.get(parts.scheme)


def _is_same(address: str, host: str) -> bool:
    scheme = address.partition("://")[0].lower()
    there = _split(address)
    return scheme in _PORTS and there is not None and there == _split(f"{scheme}://{host}")


class Guard:
    """A WSGI application in front of Locust's that refuses requests from other sites."""

    def __init__(self, application: Callable[..., Iterable[bytes]], hosts: Iterable[str]) -> None:
        self._application = application
        self._hosts = frozenset(host.strip().strip("[]").lower() for host in hosts) - {""}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        why = find_foreign(environ, self._hosts)
        if why is None:

            def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
                return start_response(status, [*headers, ("Content-Security-Policy", "frame-ancestors 'none'")], *more)

            return self._application(environ, start)
        text = f"This request comes from another site: {why}.\n".encode()
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))]
        start_response("403 Forbidden", headers)
        return [text]


def extend(web_ui: WebUI, session: Session) -> str:
    """Put the guard, our page and the verdict in front of Locust's web UI; return the address to open."""
    app, options = web_ui.app, session.options
    assert app is not None  # noqa: S101  Locust makes it with the web UI
    given = "" if options.web_host in _ANYWHERE else options.web_host
    app.wsgi_app = Guard(app.wsgi_app, [*LOOPBACK, given, *options.web_allowed_hosts.split(",")])  # type: ignore[method-assign]  # as Flask's documentation does
    base = options.web_base_path.rstrip("/")
    index = app.view_functions["locust.index"]
    statistics = app.view_functions["locust.request_stats"]

    def show(path: str, name: str, view: Callable[[], Any]) -> None:
        app.add_url_rule(f"{base}/{path}", name, web_ui.auth_required_if_enabled(view))

    def show_locust() -> Any:
        web_ui.template_args["extended_tabs"] = [{"title": "Verdict", "key": "verdict"}]
        columns = [{"key": "verdict", "title": "Verdict"}, {"key": "reason", "title": "Reason"}]
        web_ui.template_args["extended_tables"] = [{"key": "verdict", "structure": columns}]
        return index()

    def add_verdict() -> Any:
        response = app.make_response(statistics())  # type: ignore[arg-type]  # Locust's views are not asynchronous
        if response.mimetype != "application/json":  # the redirect to the login
            return response
        text, reasons = session.outcome
        rows = [{"verdict": text, "reason": reason} for reason in reasons or [""]]
        data = {**response.get_json(), "extended_stats": [{"key": "verdict", "data": rows}]}
        return Response(json.dumps(data), mimetype="application/json")

    app.view_functions["locust.index"] = web_ui.auth_required_if_enabled(
        lambda: Response(_draw_page(web_ui, session), mimetype="text/html")
    )
    app.view_functions["locust.request_stats"] = add_verdict
    show("locust", "goals.locust", show_locust)
    show("verdict", "goals.verdict", lambda: Response(session.page, mimetype="text/html"))
    show("status", "goals.status", lambda: Response(_draw_status(session), mimetype="text/html"))
    scheme = "https" if options.tls_cert and options.tls_key else "http"
    host = given or "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{web_ui.port}{base}/"


_STYLE = """<style>
form { display: grid; gap: .75rem; grid-template-columns: 1fr 1fr; align-items: end; margin: 1rem 0 }
label { display: grid; gap: .25rem }
form .wide { grid-column: 1 / -1; overflow: visible } .note { font-size: 13px; margin: 0 }
input, select, button { font: inherit; padding: .5rem .6rem; border: 1px solid var(--text); border-radius: 6px;
  background: var(--paper); color: var(--title); width: 100%; box-sizing: border-box }
button { cursor: pointer; font-weight: 600; background: var(--first); color: var(--paper); border-color: var(--first) }
button.stop { background: var(--bad); border-color: var(--bad) }
button:disabled { opacity: .5; cursor: default }
nav { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem } a { color: var(--first) }
@media (max-width: 600px) { form { grid-template-columns: 1fr } }
</style>"""

_SCRIPT = """<script>
const page = document.querySelector("main"), form = document.querySelector("form")
const status = document.querySelector("#status"), start = form.querySelector("button")
const description = document.querySelector("#description")
let shown = ""
async function refresh() {
  try {
    const answer = await fetch("status", {cache: "no-store"})
    if (answer.redirected || !answer.ok) { location.reload(); return }
    const text = await answer.text()
    if (text !== shown) { status.innerHTML = shown = text }
    start.disabled = !status.querySelector("[data-ready]")
  } catch { status.textContent = "The load test does not respond. Has it been stopped?" }
}
form.addEventListener("submit", async event => {
  event.preventDefault()
  start.disabled = true
  const answer = await fetch("swarm", {method: "POST", body: new URLSearchParams(new FormData(form))})
  const result = await answer.json().catch(() => ({success: false, message: answer.statusText}))
  if (!result.success) alert(result.message)
  await refresh()
})
status.addEventListener("click", event => {
  if (event.target.matches(".stop")) { event.target.disabled = true; fetch("stop", {method: "POST"}) }
})
const choice = form.elements.scenario
if (choice) {
  const describe = () => { description.textContent = choice.selectedOptions[0].dataset.description }
  choice.addEventListener("change", describe); describe()
}
refresh(); setInterval(refresh, 1000)
</script>"""


def _draw_page(web_ui: WebUI, session: Session) -> str:
    options = session.options
    host = escape(str(web_ui.environment.host or ""))
    if session.has_shape:
        fields = _draw_scenarios(str(options.scenario))
    else:
        names = ", ".join(user.__name__ for user in web_ui.environment.user_classes)
        users, rate, run_time = options.num_users or 1, options.spawn_rate or 1, options.run_time or ""
        fields = f"""<p class="wide note">Users in plain Python: {escape(names)}</p>
<label>Users <input name="user_count" type="number" min="1" value="{users}" required></label>
<label>Started per second <input name="spawn_rate" type="number" min="0.01" step="any" value="{rate}" required></label>
<label class="wide">Run time <input name="run_time" placeholder="such as 30s or 5m; if empty, until Stop"
 value="{run_time}"></label>"""
    body = f"""{_STYLE}<h1>Load test</h1>
<form>{fields}
<label class="wide">Host <input name="host" type="url" value="{host}" required></label>
<button class="wide" disabled>Start</button></form>
<div id="status" role="status"></div>
<nav><a href="locust">Locust's own page: charts, failures, downloads</a> <a href="verdict">Last report</a></nav>
{_SCRIPT}"""
    return write_page("Load test", body)


def _draw_scenarios(chosen: str) -> str:
    names = list_scenarios()
    choices = []
    for name in names if chosen in names else [chosen, *names]:
        try:
            description = read_scenario(name).description
        except ScenarioError as error:
            description = str(error)
        selected = " selected" if name == chosen else ""
        shown = escape(name)
        choices.append(f'<option value="{shown}" data-description="{escape(description)}"{selected}>{shown}</option>')
    return (
        f'<label class="wide">Scenario <select name="scenario">{"".join(choices)}</select></label>'
        '<p class="wide note" id="description"></p>'
    )


def _draw_status(session: Session) -> str:
    runner = session.runner
    if runner.state in {STATE_SPAWNING, STATE_RUNNING, STATE_STOPPING} or runner.shape_greenlet is not None:
        progress = escape(session.draw_progress())
        return f'<p class="banner">Running: {progress}</p><p><button class="stop" type="button">Stop</button></p>'
    ready = "<span data-ready></span>"
    text, reasons = session.outcome
    if not text:
        waiting = "No run has ended yet." if runner.state == STATE_INIT else ""
        return f"{ready}<p>{waiting}</p>"
    name = session.plan.name if session.plan else "Load test"
    more = '<p><a href="verdict">Full report</a></p>'
    return ready + write_verdict(name, text, reasons, level=2, more=more)
