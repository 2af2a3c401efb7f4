"""Runs both gateways on this machine's nginx, each before two scripted upstreams: compose's, and the cluster's.

Compose's is its own file. The cluster's is written here from the manifests, as NGINX Gateway Fabric 2.6.7 writes it:
https://github.com/nginx/nginx-gateway-fabric/tree/v2.6.7/internal/controller/nginx/config
"""

import contextlib
import getpass
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import trustme

from tests.k8s.upstream import Upstream
from tools.lint.manifests import ROOT, Manifest, render

HOST = "goals.localhost"
COMPOSE = ROOT.parent / "compose" / "gateway"
NAMES = ("compose", "cluster") if COMPOSE.is_dir() else ("cluster",)


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


def write_cluster(objects: list[Manifest], addresses: list[str]) -> str:
    """The configuration that the cluster's data plane gets: server, locations, policies, filters and snippets."""
    routes = [one for one in objects if one["kind"] == "HTTPRoute" and HOST in one["spec"]["hostnames"]]
    secured = [one for one in routes if one["spec"]["parentRefs"][0]["sectionName"] == "https-goals"]
    redirect = next(one for one in routes if one["spec"]["parentRefs"][0]["sectionName"] == "http")
    upstream = find(objects, "UpstreamSettingsPolicy", "goals")["spec"]
    limit = find(objects, "RateLimitPolicy", "goals-writes")["spec"]["rateLimit"]
    (rule,) = limit["local"]["rules"]
    snippets = {one["context"]: one["value"] for one in find(objects, "SnippetsFilter", "goals")["spec"]["snippets"]}
    log_format = find(objects, "NginxProxy", "edge")["spec"]["logging"]["accessLog"]["format"]
    locations = [
        location
        for route in secured
        for one in route["spec"]["rules"]
        for match in one["matches"]
        for location in write_locations(objects, route["metadata"]["name"], one, match["path"], snippets)
    ]
    (filter_,) = redirect["spec"]["rules"][0]["filters"]
    answer = filter_["requestRedirect"]
    servers = "\n".join(f"        server {address};" for address in addresses)
    return f"""
    log_format line escape=json '{log_format}';
    access_log LOG line;
    server_tokens off;
    map $http_host $gw_api_compliant_host {{ '' $host; default $http_host; }}
    map $http_upgrade $connection_keepalive {{ default upgrade; '' ''; }}
    limit_req_zone {rule["key"]} zone=goals_rl:{rule["zoneSize"]} rate={rule["rate"]};
    {snippets["http"]}
    upstream goals {{
        {upstream["loadBalancingMethod"]};
        zone goals 512k;
{servers}
        keepalive {upstream["keepAlive"]["connections"]};
        keepalive_requests {upstream["keepAlive"]["requests"]};
        keepalive_timeout {upstream["keepAlive"]["timeout"]};
    }}
    server {{
        listen HTTP default_server;
        default_type text/html;
        return 404;
    }}
    server {{
        listen HTTP;
        server_name {" ".join(redirect["spec"]["hostnames"])};
        location / {{ return {answer["statusCode"]} "{answer["scheme"]}://$host$request_uri"; }}
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


def write_locations(
    objects: list[Manifest], route: str, rule: Manifest, path: Manifest, snippets: dict[str, str]
) -> Iterator[str]:
    """The locations of one match: a prefix is one of the path itself and one of what is below it."""
    client = next(
        one["spec"]
        for one in objects
        if one["kind"] == "ClientSettingsPolicy" and one["spec"]["targetRef"]["name"] == route
    )
    proxy = find(objects, "ProxySettingsPolicy", "goals")["spec"]
    limit = find(objects, "RateLimitPolicy", "goals-writes")["spec"]
    limited = route in (one["name"] for one in limit["targetRefs"])
    (local,) = limit["rateLimit"]["local"]["rules"]
    headers = {
        "Host": "$gw_api_compliant_host",
        "X-Forwarded-For": "$proxy_add_x_forwarded_for",
        "X-Real-IP": "$remote_addr",
        "X-Forwarded-Proto": "$scheme",
        "X-Forwarded-Host": "$host",
        "X-Forwarded-Port": "$server_port",
        "Upgrade": "$http_upgrade",
        "Connection": "$connection_keepalive",
    }
    (modified,) = (one["requestHeaderModifier"] for one in rule["filters"] if one["type"] == "RequestHeaderModifier")
    headers |= {one["name"]: one["value"] for one in modified["set"]}
    lines = [
        snippets["http.server.location"],
        f"client_max_body_size {client['body']['maxSize']};",
        f"client_body_timeout {client['body']['timeout']};",
        f"keepalive_requests {client['keepAlive']['requests']};",
        f"keepalive_timeout {client['keepAlive']['timeout']['server']};",
        f"proxy_buffer_size {proxy['buffering']['bufferSize']};",
        f"proxy_buffers {proxy['buffering']['buffers']['number']} {proxy['buffering']['buffers']['size']};",
        *(f"proxy_{name}_timeout {value};" for name, value in proxy["timeout"].items()),
    ]
    if limited:
        lines += [
            f"limit_req zone=goals_rl burst={local['burst']} nodelay;",
            f"limit_req_log_level {limit['rateLimit']['logLevel']};",
            f"limit_req_status {limit['rateLimit']['rejectCode']};",
        ]
    lines += ["proxy_http_version 1.1;", *(f'proxy_set_header {name} "{value}";' for name, value in headers.items())]
    body = "\n            ".join([*lines, "proxy_pass http://goals;"])
    value = path["value"]
    heads = ["= " + value] if path["type"] == "Exact" else ["/"] if value == "/" else [f"{value}/", "= " + value]
    for head in heads:
        yield f"location {head} {{\n            {body}\n        }}\n        "


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
    """Run one of the two, "compose" or "cluster", with upstreams of its own or before `addresses`."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    assert Path(nginx).exists(), "nginx is not installed (Debian and Ubuntu: apt-get install nginx-light)"
    with contextlib.ExitStack() as stack:
        upstreams = (stack.enter_context(Upstream()), stack.enter_context(Upstream()))
        addresses = addresses or [f"127.0.0.1:{one.port}" for one in upstreams]
        if name == "compose":
            http = read_compose(addresses)
        else:
            http = write_cluster(render(ROOT / "overlays" / "local"), addresses)
        authority = trustme.CA()
        certificate = authority.issue_cert(HOST, "localhost")
        authority.cert_pem.write_to_path(folder / "ca.crt")
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
        # nginx takes over sockets that are bound already, as it does from its own older process in an upgrade.
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [one.getsockname()[1] for one in sockets]
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
            # Root's workers would be of another account, which cannot write into this folder.
            f"user {getpass.getuser()};\ndaemon off;\nworker_processes 1;\n"
            f"pid {folder}/pid;\nerror_log {folder}/error.log warn;\n"
            f"events {{ worker_connections 1024; }}\nhttp {{\n{temporary}{http}\n}}\n"
        )
        inherited = ";".join(str(one.fileno()) for one in sockets) + ";"
        process = subprocess.Popen(
            [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")],
            env={"NGINX": inherited},
            pass_fds=[one.fileno() for one in sockets],
        )
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        yield Gateway(name, ports[0], ports[1], folder / "ca.crt", folder / "access.log", upstreams)


def version(nginx: str) -> list[str]:
    said = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    return said.rpartition("nginx/")[2].split()[0].split(".")
