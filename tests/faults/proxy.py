"""A store behind a line of our own, which can be slow, be cut, or lose an answer."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

from lab.stores import LOOPBACK

_CHUNK = 65536


class Proxy:
    """Passes TCP on to a port of this machine. Its switches may be turned at any time.

    ``delay``: seconds that each piece of an answer takes more. ``answers``: how many more pieces of answers are let
    through before every connection is cut; the next one is lost though the store has done what it says. None: all.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.delay = 0.0
        self.answers: int | None = None
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection that is open now."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def mend(self) -> None:
        """A line as it should be."""
        self.delay, self.answers = 0.0, None

    def close(self) -> None:
        """Take no connection any more and cut those that are open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                store = socket.create_connection((LOOPBACK, self.upstream), timeout=5)
            except OSError:
                client.close()
                continue
            store.settimeout(None)
            for end in (client, store):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, store)
            with self._lock:
                self._pairs.add(pair)
            for source, sink in (pair, (store, client)):
                threading.Thread(target=self._pass_on, args=(pair, source, sink), daemon=True).start()

    def _pass_on(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        answers = source is pair[1]
        try:
            while piece := source.recv(_CHUNK):
                if answers and self.delay:
                    time.sleep(self.delay)
                if answers and self._lost():
                    self.cut()
                    return
                sink.sendall(piece)
        except OSError:
            pass  # reset by one of the two, or cut
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _lost(self) -> bool:
        with self._lock:
            if self.answers is None:
                return False
            self.answers -= 1
            return self.answers < 0
