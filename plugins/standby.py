"""A Python on standby, with everything imported that the queue_* modules import: each of their calls is a fork of it.

A fresh Python spends most of such a call on its imports, and a change window is some fifty calls. What asks is a fresh
Python all the same, which has imported nothing yet: it lends its standard streams, environment and working directory,
and runs the program itself where nobody listens or the imports failed.

    standby.py SOCKET PID FOLDER   returns when it listens; it does until the process PID, ansible-playbook, is gone
"""

from __future__ import annotations

import os
import socket
import sys

#: What is answered before a program is begun. From then on the program must not be run a second time.
BEGUN = b"begun\n"
#: Programs that may wait until the imports are done.
BACKLOG = 64
#: Bytes that say how long a request is.
LENGTH = 4


def ask(address: str, program: str) -> None:
    """Have a program run by the one who listens there, and exit as it does; return when it was not begun.

    :param program: its text
    """
    folder = os.getcwd()  # noqa: PTH109 - the import of pathlib takes longer than all of this
    words = [program, folder, *(word for pair in os.environ.items() for word in pair)]
    request = b"\0".join(os.fsencode(word) for word in words)
    with socket.socket(socket.AF_UNIX) as server, server.makefile("rb") as answers:
        try:
            server.connect(address)
            socket.send_fds(server, [len(request).to_bytes(LENGTH, "big")], [0, 1, 2])
            server.sendall(request)
            if answers.readline() != BEGUN:
                return
        except OSError:
            return
        code = answers.readline()
    if not code:
        sys.exit("what waited for this module is gone; whether the module goes on is not known")
    sys.exit(int(code))


def serve(address: str, playbook: int, folder: str) -> str | None:
    """Listen until ansible-playbook is gone; in a fork for a request, return: the program that it is to be.

    :param playbook: the process id of ansible-playbook
    :param folder: where the package ``sluice`` lies
    """
    import gc
    import select
    import signal

    with socket.socket(socket.AF_UNIX) as listener:
        try:
            alive = os.pidfd_open(playbook)
            listener.bind(address)
        except (AttributeError, OSError):  # this system has no such call, it is gone already, another was first
            return None
        listener.listen(BACKLOG)
        if os.fork():  # whoever started this process waits for it to listen
            os._exit(0)
        _import_all(folder)
        gc.freeze()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program at work
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the programs
        while True:
            readable, _, _ = select.select([listener.fileno(), alive], [], [])
            if alive in readable:
                return None
            client, _ = listener.accept()
            if not os.fork():
                break
            client.close()
    os.close(alive)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with client:
        header, streams, _, _ = socket.recv_fds(client, LENGTH, 3)
        if len(streams) < 3:  # who asked is gone
            os._exit(1)
        with client.makefile("rb") as incoming:
            program, *words = incoming.read(int.from_bytes(header, "big")).split(b"\0")
        client.sendall(BEGUN)
        pid = os.fork()
        if pid:
            for stream in streams:
                os.close(stream)
            _, status = os.waitpid(pid, 0)
            ended = os.waitstatus_to_exitcode(status)
            client.sendall(b"%d\n" % (ended if ended >= 0 else 128 - ended))
            os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _take_over(streams, [os.fsdecode(word) for word in words])
    return os.fsdecode(program)


def _import_all(folder: str) -> None:
    """Import what modules use: all of the package ``sluice`` and what Ansible's own archive of a module uses."""
    import importlib
    import pkgutil

    del sys.path[0]  # the folder of this file
    import ansible.module_utils
    import ansible.modules
    from ansible.module_utils._internal._ansiballz import _loader  # noqa: F401

    ansible.module_utils.__path__.append(folder)
    package = importlib.import_module("ansible.module_utils.sluice")
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)


def _take_over(streams: list[int], words: list[str]) -> None:
    """Take what the one who asked lent: its streams, working directory and environment."""
    for own, lent in enumerate(streams):
        os.dup2(lent, own)
        os.close(lent)
    os.chdir(words[0])
    os.environ.clear()
    os.environ.update(zip(words[1::2], words[2::2], strict=True))
    sys.argv = ["-"]


if __name__ == "__main__":
    text = serve(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    if text is not None:
        exec(compile(text, "<stdin>", "exec"), {"__name__": "__main__"})  # noqa: S102
