"""Gunicorn's settings for captions. The address is given on the command line.

The application is not loaded before the fork: a HUP replaces the worker processes one by one, each reads the
``.env`` file anew, and the listening socket stays open throughout.
"""

from __future__ import annotations

from captions.settings import load_or_exit

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


def on_starting(server: object) -> None:
    """Before any process is forked: settings that cannot be used end the start with one line."""
    load_or_exit()
