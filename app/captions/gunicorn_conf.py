"""Gunicorn's settings for captions. The address is given on the command line.

The application is not loaded before the fork: a HUP replaces the worker processes one by one, each reads the
``.env`` file and the application anew, and the listening socket stays open throughout. What it needs of others is
loaded here, so that a new process is there soon.
"""

from __future__ import annotations

import subprocess
import sys

import flask  # noqa: F401
import PIL.Image  # noqa: F401
import prometheus_client  # noqa: F401
import pymysql  # noqa: F401
import redis  # noqa: F401
import sqlalchemy.dialects.mysql  # noqa: F401

wsgi_app = "captions.web:create_app()"
workers = 2
worker_class = "gthread"
threads = 8
timeout = 60
graceful_timeout = 30
keepalive = 15
accesslog = None
errorlog = "-"
control_socket_disable = True

_sets_of_workers: list[subprocess.Popen[bytes]] = []


def on_starting(server: object) -> None:
    """Before any process is forked: settings that cannot be used end the start with one line."""
    done = subprocess.run([sys.executable, "-m", "captions.check"], stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)


def when_ready(server: object) -> None:
    """The machine's RQ workers begin with the web processes, when the settings ask for some."""
    _sets_of_workers.append(subprocess.Popen([sys.executable, "-m", "captions.workers"], stdin=subprocess.DEVNULL))


def on_exit(server: object) -> None:
    """And they end with them, each after its job."""
    for process in _sets_of_workers:
        process.terminate()
        process.wait()
