"""A Ray cluster of several nodes on this machine, each started with ``ray start`` like a real one.

Every node is a family of processes of its own that can be killed as a machine dies: all at once.
Its ports, token and folder are its own, so that it meets no other Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; sys.exit(main())"]
_STORE_BYTES = 80 * 2**20


def free_port() -> int:
    """A port that is free at the moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class RayNode:
    """One ``ray start --block`` and all its child processes."""

    name: str
    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        try:
            head = psutil.Process(self.process.pid)
            return [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill every process of the node at once."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
        self.process.wait(10)


@dataclass
class RayCluster:
    """A head without cores, and worker nodes. A context manager."""

    env: dict[str, str] = field(default_factory=dict)
    gcs_port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    nodes: dict[str, RayNode] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(24))

    def __post_init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pa-", dir="/tmp"))
        self.token_path = self.folder / "token"
        self.token_path.write_text(self.token)
        self.token_path.chmod(0o600)

    @property
    def address(self) -> str:
        """Address of the dashboard, for job submission."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def gcs_address(self) -> str:
        """Address of the cluster itself, for drivers that join it."""
        return f"127.0.0.1:{self.gcs_port}"

    @property
    def client_env(self) -> dict[str, str]:
        """Environment of a client: what it needs to connect, and none of the cluster's own variables."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_"))}
        return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}

    def __enter__(self) -> RayCluster:
        try:
            self._start(
                "head",
                "--head",
                f"--port={self.gcs_port}",
                f"--dashboard-port={self.dashboard_port}",
                "--dashboard-host=127.0.0.1",
                f"--ray-client-server-port={free_port()}",
                f"--temp-dir={self.folder}/r",
                "--include-dashboard=true",
                num_cpus=0,
            )
            self._wait_for_dashboard()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes.values()):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self, kind: str) -> list[psutil.Process]:
        """List the processes of the cluster whose title begins with ``kind``, such as ``ray::UnitActor``."""
        found = []
        for node in self.nodes.values():
            for process in node.family():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if " ".join(process.cmdline()).startswith(kind):
                        found.append(process)
        return found

    def node_of(self, kind: str) -> str:
        """Return the name of the node that runs a process whose title begins with ``kind``."""
        for name, node in self.nodes.items():
            for process in node.family():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if " ".join(process.cmdline()).startswith(kind):
                        return name
        raise AssertionError(f"no node runs {kind}")

    def add(self, name: str, *, num_cpus: int = 1, resources: dict[str, float] | None = None) -> None:
        """Start a node; does not wait until it has joined."""
        more = [f"--resources={json.dumps(resources)}"] if resources else []
        self._start(name, f"--address={self.gcs_address}", *more, num_cpus=num_cpus)

    def kill(self, name: str) -> None:
        """Kill a node at once."""
        self.nodes.pop(name).kill()

    def wait_for_nodes(self, count: int, timeout_s: float = 60) -> None:
        """Wait until ``count`` nodes are alive, the head included."""
        deadline = time.monotonic() + timeout_s
        while len(self.alive_nodes()) != count:
            assert time.monotonic() < deadline, f"{len(self.alive_nodes())} nodes are alive, not {count}"
            time.sleep(0.3)

    def alive_nodes(self) -> list[dict[str, Any]]:
        """The living nodes, as the dashboard lists them."""
        found = self.get("/nodes?view=summary")["data"]["summary"]
        return [node for node in found if node["raylet"].get("state") == "ALIVE"]

    def get(self, path: str) -> Any:
        """Get a path of the dashboard, parsed from JSON."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def _start(self, name: str, *arguments: str, num_cpus: int) -> None:
        # A node gets neither our path nor our credentials, so that a test sees whether a job sends what it needs.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "PYTHONPATH"))}
        env = kept | self.env | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "5",
        }  # fmt: skip
        command = [
            *_RAY,
            "start",
            *arguments,
            "--node-ip-address=127.0.0.1",
            f"--num-cpus={num_cpus}",
            "--num-gpus=0",
            f"--object-store-memory={_STORE_BYTES}",
            f"--dashboard-agent-listen-port={free_port()}",
            "--min-worker-port=0",
            "--max-worker-port=0",
            "--disable-usage-stats",
            "--block",
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd="/", start_new_session=True
            )
        self.nodes[name] = RayNode(name, process)

    def _wait_for_dashboard(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self.nodes["head"].process.poll() is None, (self.folder / "head.log").read_text()
            assert time.monotonic() < deadline, "the dashboard did not answer"
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self.get("/api/version")
                return
            time.sleep(0.3)
