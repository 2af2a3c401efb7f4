"""What pods do without a database, with a wrong password, and when five migrate at once: as k8s/README.md says."""

import base64
import secrets
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.kubectl import OURS, Kubectl
from tests.cluster.site import SELECTOR, Site, secret
from tools.lint.inventory import first
from tools.lint.manifests import ROOT
from tools.polling import wait_until

pytestmark = pytest.mark.needs("nodes")

PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
Figures = Callable[..., None]
OUTAGE = 45.0
"""Seconds: three failed probes, ten seconds apart, would restart a container."""


@pytest.fixture(autouse=True)
def whole(kubectl: Kubectl, site: Site) -> Iterator[None]:
    """Two pods before, and the overlay's own objects, a database that answers and its password afterwards."""
    if not site.standin:
        pytest.skip("only the stand-in can be stopped and stay so: CloudNativePG restarts its instances")
    site.scale(2)
    yield
    site.start_database()
    set_password(site, site.password)
    site.apply(*(site.rendered(kind, "goals") for kind in ("Deployment", "HorizontalPodAutoscaler")))
    site.until_rolled_out()


def set_password(site: Site, password: str) -> None:
    """What PostgreSQL demands of the role from now on; connections that exist stay."""
    site.sql(f"ALTER ROLE goals_user PASSWORD '{password}'")


def start_anew(site: Site, number: int) -> None:
    """Take all pods away, and ask for so many new ones; the autoscaler leaves a Deployment of none alone."""
    site.kubectl("scale", "deployment/goals", "--namespace", "goals", "--replicas=0")
    wait_until(lambda: not site.pods(), "the pods are gone", 120)
    site.let_scale(number, number)
    site.kubectl("scale", "deployment/goals", "--namespace", "goals", f"--replicas={number}")


def reasons(site: Site) -> set[str]:
    """What kubectl shows of the pods' containers."""
    paths = ("status.initContainerStatuses[].state.waiting.reason", "status.containerStatuses[].state.waiting.reason")
    return {found for one in site.pods() for path in paths if (found := first(one, path))}


def failures(site: Site) -> int:
    """How often an init container has ended with an error."""
    found = (first(one, "status.initContainerStatuses[].restartCount", 0) for one in site.pods())
    return max(found, default=0)


def last_words(site: Site) -> str:
    """What the migrations that failed have said last."""
    said = []
    for name in (one["metadata"]["name"] for one in site.pods()):
        done = site.kubectl.run("logs", name, "--namespace", "goals", "--container", "migrate", "--previous")
        said += done.stdout.strip().splitlines()[-1:]
    return "; ".join(said)


def ask(site: Site, pod: str, path: str, port: int = 9464) -> int:
    """The status that a pod answers with, asked from inside it."""
    program = (
        f"import http.client; asked = http.client.HTTPConnection('127.0.0.1', {port}, timeout=5);"
        f"asked.request('GET', '{path}', headers={{'Host': 'goals'}}); print(asked.getresponse().status)"
    )
    return int(site.kubectl.python("goals", pod, program))


def test_without_its_secrets_a_pod_waits_as_the_page_says(site: Site) -> None:
    """Seen while the site came up: the overlay was there before the database's Secrets."""
    for seen in ("Init:0/1", 'secret "goals-db-app" not found'):
        assert seen in site.waited_for
        assert seen in PAGE
    assert "CreateContainerConfigError" not in site.waited_for


def test_while_the_database_is_away_the_migration_tries_again(site: Site, figures: Figures) -> None:
    site.stop_database()
    start_anew(site, 2)
    seen: set[str] = set()

    def has_failed() -> bool:
        seen.update(reasons(site))
        return failures(site) >= 1

    wait_until(has_failed, "the init container fails and starts again", 120)
    site.start_database()
    site.until_rolled_out()
    figures(seen=", ".join(sorted(seen)))
    assert "CreateContainerConfigError" not in seen
    assert "`Init:Error`" in PAGE


def test_five_pods_migrate_at_once_and_each_becomes_ready(site: Site, figures: Figures) -> None:
    site.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION pg_database_owner")
    start_anew(site, 5)
    wait_until(lambda: len(site.ready_pods()) == 5, "five pods are ready", 180)
    revisions = site.sql("SELECT count(*) FROM alembic_version")
    figures(revisions=revisions, tried_again=failures(site), said=last_words(site) or "nothing")
    assert revisions == "1"
    assert site.restarts() == 0


@pytest.mark.full
def test_a_wrong_password_keeps_a_new_pod_from_starting_and_nothing_else(site: Site) -> None:
    set_password(site, secrets.token_urlsafe(24))
    site.kubectl("rollout", "restart", "deployment/goals", "--namespace", "goals")
    wait_until(lambda: failures(site) >= 1, "the migration is refused", 120)
    assert len(site.ready_pods()) == 2  # those of before serve on
    wait_until(lambda: "password" in last_words(site), "the log names the password", 60)
    set_password(site, site.password)
    site.until_rolled_out()


@pytest.mark.full
def test_a_secret_that_changes_while_it_is_mounted_needs_no_restart(site: Site, figures: Figures) -> None:
    before = {one["metadata"]["uid"] for one in site.pods()}
    changed = secrets.token_urlsafe(24)
    stored = site.kubectl.get("secret", "goals-db-app", "--namespace", "goals")["data"]
    data = {key: base64.b64decode(value).decode() for key, value in stored.items()}
    try:
        set_password(site, changed)
        site.kubectl.apply([secret("goals-db-app", **{**data, "password": changed})])
        program = "print(open('/run/secrets/database/password').read())"
        names = [one["metadata"]["name"] for one in site.pods()]
        # The kubelet reads the Secret again within a minute or two, or at once when a pod changes.
        site.kubectl("annotate", "pods", "--namespace", "goals", "--selector", SELECTOR, f"{OURS}=seen", "--overwrite")

        def have_it() -> bool:
            return all(site.kubectl.python("goals", name, program).strip() == changed for name in names)

        wait_until(have_it, "the file changes", 180)
        site.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'goals_user'")
        wait_until(lambda: {ask(site, name, "/", 8080) for name in names} == {200}, "both serve again", 60)
        figures(pods_replaced=len(before - {one["metadata"]["uid"] for one in site.pods()}), restarts=site.restarts())
        assert {one["metadata"]["uid"] for one in site.pods()} == before
        assert site.restarts() == 0
    finally:
        site.kubectl.apply([secret("goals-db-app", **data)])


@pytest.mark.full
def test_an_outage_of_the_database_restarts_nothing(site: Site, figures: Figures) -> None:
    site.stop_database()
    answers = []
    over = time.monotonic() + OUTAGE
    while time.monotonic() < over:
        answers.append(ask(site, site.pods()[0]["metadata"]["name"], "/livez"))
    figures(liveness_asked=len(answers), restarts=site.restarts(), ready=len(site.ready_pods()))
    assert set(answers) == {200}
    assert site.restarts() == 0
    assert len(site.ready_pods()) == 2
    site.start_database()


@pytest.mark.full
def test_control_a_liveness_probe_that_fails_restarts_the_container(site: Site) -> None:
    """Were restarts not seen, the outage above would pass whatever the probe asked."""
    deployment = site.rendered("Deployment", "goals")
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    probe |= {"httpGet": {"path": "/nothing", "port": "ops"}, "periodSeconds": 1, "failureThreshold": 1}
    site.apply(deployment)
    wait_until(lambda: site.restarts() > 0, "a container starts again", 120)
