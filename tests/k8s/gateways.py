"""Runs gateways on this machine's nginx, each before two scripted upstreams: compose's, and two forms of the cluster's.

Compose's is its own file. The cluster's is written here from the manifests, as NGINX Gateway Fabric 2.6.7 writes it:
https://github.com/nginx/nginx-gateway-fabric/tree/v2.6.7/internal/controller/nginx/config
Where $NGINX_GATEWAY names a folder of files that the operator itself wrote, these are served as well ("operator"), with
what the manifests have changed since.
"""

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from tests.k8s.upstream import Upstream
from tools.lint.manifests import ROOT, Manifest, render

HOST = "goals.localhost"
COMPOSE = ROOT.parent / "compose" / "gateway"
NAMES = ("compose", "cluster") if COMPOSE.is_dir() else ("cluster",)
WRITTEN = Path(os.environ["NGINX_GATEWAY"]).resolve() if os.environ.get("NGINX_GATEWAY") else None
"""A folder as `local`, beside a `serve.sh` that makes it fit a machine's nginx."""

OPERATOR = pytest.param(
    "operator",
    marks=pytest.mark.skipif(WRITTEN is None, reason="NOT RUN: $NGINX_GATEWAY names no files that the operator wrote"),
)
ALL = (*NAMES, OPERATOR)


class Gateway(NamedTuple):
    """Where a gateway listens, whom its certificate is from, its log, and what stands behind it."""

    name: str
    http: int
    https: int
    authority: Path
    log: Path
    upstreams: tuple[Upstream, Upstream]


def find(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """The object of that kind and name; raises `StopIteration` where the manifests have none."""
    return next(one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)


class Edge:
    """What the manifests ask of the cluster's gateway, as directives of nginx."""

    def __init__(self, objects: list[Manifest]) -> None:
        routes = [one for one in objects if one["kind"] == "HTTPRoute" and HOST in one["spec"]["hostnames"]]
        self._objects = objects
        self._routes = [one for one in routes if one["spec"]["parentRefs"][0]["sectionName"] == "https-goals"]
        redirect = next(one for one in routes if one["spec"]["parentRefs"][0]["sectionName"] == "http")
        (filter_,) = redirect["spec"]["rules"][0]["filters"]
        self.redirect = filter_["requestRedirect"]
        self.redirected = " ".join(redirect["spec"]["hostnames"])
        self.snippets = {
            one["context"]: one["value"] for one in find(objects, "SnippetsFilter", "goals")["spec"]["snippets"]
        }
        self.log_format = find(objects, "NginxProxy", "edge")["spec"]["logging"]["accessLog"]["format"]
        self._limit = find(objects, "RateLimitPolicy", "goals-writes")["spec"]
        self._upstream = find(objects, "UpstreamSettingsPolicy", "goals")["spec"]

    def write_upstream(self) -> list[str]:
        keep_alive = self._upstream["keepAlive"]
        return [
            f"{self._upstream['loadBalancingMethod']};",
            f"keepalive {keep_alive['connections']};",
            f"keepalive_requests {keep_alive['requests']};",
            f"keepalive_timeout {keep_alive['timeout']};",
        ]

    def write_zone(self) -> str:
        (rule,) = self._limit["rateLimit"]["local"]["rules"]
        return f"limit_req_zone {rule['key']} zone=goals_rl:{rule['zoneSize']} rate={rule['rate']};"

    def write_client_settings(self, route: str) -> list[str]:
        (client,) = (
            one["spec"]
            for one in self._objects
            if one["kind"] == "ClientSettingsPolicy" and one["spec"]["targetRef"]["name"] == route
        )
        return [
            f"client_max_body_size {client['body']['maxSize']};",
            f"client_body_timeout {client['body']['timeout']};",
            f"keepalive_requests {client['keepAlive']['requests']};",
            f"keepalive_timeout {client['keepAlive']['timeout']['server']};",
        ]

    def write_proxy_settings(self) -> list[str]:
        proxy = find(self._objects, "ProxySettingsPolicy", "goals")["spec"]
        buffers = proxy["buffering"]["buffers"]
        return [
            f"proxy_buffer_size {proxy['buffering']['bufferSize']};",
            f"proxy_buffers {buffers['number']} {buffers['size']};",
            *(f"proxy_{name}_timeout {value};" for name, value in proxy["timeout"].items()),
        ]

    def write_rate_limit(self, route: str) -> list[str]:
        if route not in (one["name"] for one in self._limit["targetRefs"]):
            return []
        limit = self._limit["rateLimit"]
        (local,) = limit["local"]["rules"]
        return [
            f"limit_req zone=goals_rl burst={local['burst']} nodelay;",
            f"limit_req_log_level {limit['logLevel']};",
            f"limit_req_status {limit['rejectCode']};",
        ]

    def locations(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Each location, its route, and the request's headers that the route sets."""
        for route in self._routes:
            for rule in route["spec"]["rules"]:
                (modifier,) = (
                    one["requestHeaderModifier"] for one in rule["filters"] if one["type"] == "RequestHeaderModifier"
                )
                modified = {one["name"]: one["value"] for one in modifier["set"]}
                for match in rule["matches"]:
                    for location in write_paths(match["path"]):
                        yield location, route["metadata"]["name"], modified


def write_paths(path: Manifest) -> list[str]:
    """The locations of one match: a prefix is one of the path itself and one of what is below it."""
    value = path["value"]
    if path["type"] == "Exact":
        return [f"= {value}"]
    return ["/"] if value == "/" else [f"{value}/", f"= {value}"]


def write_cluster(edge: Edge, addresses: list[str]) -> str:
    """The configuration that the cluster's data plane gets: server, locations, policies, filters and snippets."""
    upstream = "\n        ".join([*edge.write_upstream(), *(f"server {address};" for address in addresses)])
    locations = []
    for path, route, modified in edge.locations():
        headers = BASE_HEADERS | modified
        lines = [
            edge.snippets["http.server.location"],
            *edge.write_client_settings(route),
            *edge.write_proxy_settings(),
            *edge.write_rate_limit(route),
            "proxy_http_version 1.1;",
            *(f'proxy_set_header {name} "{value}";' for name, value in headers.items()),
            "proxy_pass http://goals;",
        ]
        body = "\n            ".join(lines)
        locations.append(f"location {path} {{\n            {body}\n        }}\n        ")
    return f"""
    log_format line escape=json '{edge.log_format}';
    access_log LOG line;
    server_tokens off;
    map $http_host $gw_api_compliant_host {{ '' $host; default $http_host; }}
    map $http_upgrade $connection_keepalive {{ default upgrade; '' ''; }}
    {edge.write_zone()}
    {edge.snippets["http"]}
    upstream goals {{
        zone goals 512k;
        {upstream}
    }}
    server {{
        listen HTTP default_server;
        default_type text/html;
        return 404;
    }}
    server {{
        listen HTTP;
        server_name {edge.redirected};
        location / {{ return {edge.redirect["statusCode"]} "{edge.redirect["scheme"]}://$host$request_uri"; }}
    }}
    server {{
        listen HTTPS ssl default_server;
        ssl_reject_handshake on;
    }}
    server {{
        listen HTTPS ssl;
        server_name {HOST};
        ssl_certificate CERTIFICATE;
        ssl_certificate_key CERTIFICATE;
        ssl_protocols TLSv1.2 TLSv1.3;
        if ($host != {HOST}) {{ return 421; }}
        {"".join(locations)}
    }}
"""


BASE_HEADERS = {
    "Host": "$gw_api_compliant_host",
    "X-Forwarded-For": "$proxy_add_x_forwarded_for",
    "X-Real-IP": "$remote_addr",
    "X-Forwarded-Proto": "$scheme",
    "X-Forwarded-Host": "$host",
    "X-Forwarded-Port": "$server_port",
    "Upgrade": "$http_upgrade",
    "Connection": "$connection_keepalive",
}
"""What the operator passes on of every request, unless a route sets it otherwise."""


def adapt_operator(prefix: Path, edge: Edge, log: Path, ports: list[int]) -> None:
    """Bring the operator's files, made fit for this machine by its own script, to what the manifests ask for now.

    The operator wrote them before these were changed: the redirect's names, the request's headers, one path more, the
    log's form, the snippet, and fields of its policies. Everything else stays as it wrote it.
    """
    conf = prefix / "etc/nginx"
    includes, http = conf / "includes", conf / "conf.d/http.conf"
    for route in ("goals", "goals-writes"):
        (includes / f"ClientSettingsPolicy_goals_{route}.conf").write_text("\n".join(edge.write_client_settings(route)))
    (includes / "ProxySettingsPolicy_goals_goals.conf").write_text("\n".join(edge.write_proxy_settings()))
    (includes / "RateLimitPolicy_goals_goals-writes_internal_http.conf").write_text(edge.write_zone())
    limit = "\n".join(edge.write_rate_limit("goals-writes"))
    (includes / "RateLimitPolicy_goals_goals-writes_route.conf").write_text(limit)

    text = http.read_text(encoding="utf-8")
    text = re.sub(r"listen \[::\]:.*\n", "", text)
    for port in ports:
        text = text.replace(f"listen {port}", f"listen 127.0.0.1:{port}")
    text = re.sub(r"(?m)^log_format .*$", lambda _: f"log_format line escape=json '{edge.log_format}';", text)
    text = re.sub(
        r"(?m)^access_log /dev/stdout .*$", lambda _: f"access_log {log} line;\n{edge.snippets['http']}", text
    )
    text = text.replace("server_name ~^;", f"server_name {edge.redirected};")
    text = re.sub(r"    keepalive 32;[^}]*", "".join(f"    {one}\n" for one in edge.write_upstream()[1:]), text)
    written: dict[str, str] = dict(
        re.findall(r"\n    location (\S.*?) \{\n(.*?\n)    \}", text[text.index(f"server_name {HOST};") :], re.DOTALL)
    )
    below = {"goals": "/", "goals-writes": "/api/v1/goals/"}
    for path, route, modified in edge.locations():
        body = old = written.get(path, written[below[route]])
        for name, value in modified.items():
            body = re.sub(rf" *proxy_set_header {name} .*\n", "", body)
            body = body.replace(" proxy_pass ", f' proxy_set_header {name} "{value}";\n        proxy_pass ')
        block = f"location {path} {{\n{edge.snippets['http.server.location']}\n{body}    }}"
        if path in written:
            text = text.replace(f"location {path} {{\n{old}    }}", block)
        else:
            text = text.replace(f"server_name {HOST};", f"server_name {HOST};\n    {block}")
    http.write_text(text, encoding="utf-8")


def read_compose(addresses: list[str]) -> str:
    """Compose's own http block, with the names that only Docker's DNS has replaced by the upstreams' addresses."""
    text = (COMPOSE / "nginx.conf").read_text(encoding="utf-8")
    text = text[text.index("http {") + len("http {") : text.rindex("}")]
    redirect = (COMPOSE / "redirect.conf.template").read_text(encoding="utf-8")
    servers = "\n        ".join(f"server {address} max_fails=0;" for address in addresses)
    for old, new in (
        ("server goals:8080 resolve max_fails=0;", servers),
        ("access_log /dev/stdout line;", "access_log LOG line;"),
        ("/run/secrets/tls.crt", "CERTIFICATE"),
        ("/run/secrets/tls.key", "CERTIFICATE"),
        ("listen 8443 ssl", "listen HTTPS ssl"),
        ("listen 127.0.0.1:8081;", "listen unix:STATUS;"),
        ("include /etc/nginx/conf.d/redirect.conf;", redirect),
        ("listen 8080 default_server;", "listen HTTP default_server;"),
        (":${HTTPS_PORT}", ""),
    ):
        assert old in text, old
        text = text.replace(old, new)
    return re.sub(r"(?m)^ *resolver.*$", "", text)


@contextlib.contextmanager
def serve(name: str, folder: Path, addresses: list[str] | None = None) -> Iterator[Gateway]:
    """Run one of `ALL` with upstreams of its own or before `addresses`."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    assert Path(nginx).exists(), "nginx is not installed (Debian and Ubuntu: apt-get install nginx-light)"
    with contextlib.ExitStack() as stack:
        upstreams = (stack.enter_context(Upstream()), stack.enter_context(Upstream()))
        addresses = addresses or [f"127.0.0.1:{one.port}" for one in upstreams]
        # nginx takes over sockets that are bound already, as it does from its own older process in an upgrade.
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [one.getsockname()[1] for one in sockets]
        log = folder / "access.log"
        if name == "compose":
            configuration, authority = write_alone(read_compose(addresses), nginx, folder, ports)
        elif name == "cluster":
            edge = Edge(render(ROOT / "overlays" / "local"))
            configuration, authority = write_alone(write_cluster(edge, addresses), nginx, folder, ports)
        else:
            configuration, authority = prepare_operator(nginx, folder, log, ports, addresses)
        paths = ["-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
        inherited = ";".join(str(one.fileno()) for one in sockets) + ";"
        process = subprocess.Popen(
            # Root's workers would be of another account, which cannot write into this folder.
            [nginx, *paths, "-g", f"daemon off; user {getpass.getuser()};"],
            env={"NGINX": inherited},
            pass_fds=[one.fileno() for one in sockets],
        )
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        yield Gateway(name, ports[0], ports[1], authority, log, upstreams)


def write_alone(http: str, nginx: str, folder: Path, ports: list[int]) -> tuple[Path, Path]:
    """Write an http block as a configuration of its own; return its file, and the authority of its certificate."""
    authority = trustme.CA()
    certificate = authority.issue_cert(HOST, "localhost")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
    for old, new in (
        ("LOG", str(folder / "access.log")),
        ("CERTIFICATE", str(folder / "tls.pem")),
        ("STATUS", str(folder / "status.sock")),
        ("listen HTTPS", f"listen 127.0.0.1:{ports[1]}"),
        ("listen HTTP", f"listen 127.0.0.1:{ports[0]}"),
    ):
        http = http.replace(old, new)
    if tuple(map(int, version(nginx))) < (1, 25, 1):
        http = http.replace("http2 on;", "").replace(" ssl default_server;", " ssl http2 default_server;")
    temporary = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"worker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log warn;\n"
        f"events {{ worker_connections 1024; }}\nhttp {{\n{temporary}{http}\n}}\n"
    )
    return folder / "nginx.conf", folder / "ca.crt"


def prepare_operator(nginx: str, folder: Path, log: Path, ports: list[int], addresses: list[str]) -> tuple[Path, Path]:
    """Let the script beside the operator's files make them fit this machine; return the same as `write_alone`."""
    assert WRITTEN is not None
    prefix = folder / "prefix"
    subprocess.run(
        [WRITTEN.parent / "serve.sh", WRITTEN, prefix, *map(str, ports), addresses[0], addresses[-1]],
        check=True,
        capture_output=True,
        env=os.environ | {"CHECK": "1", "NGINX_BIN": nginx},
    )
    adapt_operator(prefix, Edge(render(ROOT / "overlays" / "local")), log, ports)
    return prefix / "etc/nginx/nginx.conf", prefix / f"run/{HOST}.crt"


def version(nginx: str) -> list[str]:
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    return said.rpartition("nginx/")[2].split()[0].split(".")
