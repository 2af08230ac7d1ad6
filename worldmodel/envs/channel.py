"""How a pool and a worker process talk: messages over a socket with a deadline on every wait, observations through
anonymous shared memory. Standard library only, because a worker imports this before it sets its thread counts.

The shared memory has no name: it is handed over as a file descriptor and goes with the last process that holds it, so
nothing is ever left in /dev/shm, whoever is killed and how; nor does the size of /dev/shm matter.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import socket
import struct
import tempfile
import time
from typing import Any

_HEAD = struct.Struct("!Q")
_CHUNK = 1 << 16


class Channel:
    """Pickled messages between a process and the child it started. Both ends are our own code."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(None)
        self._timeout: float | None = None
        self._read = bytearray()
        """Received, not yet asked for."""

    def send(self, message: object, timeout: float | None = None) -> None:
        """Raises TimeoutError after about ``timeout`` seconds, OSError when the other side is gone."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._limit(timeout)
        self._socket.sendall(_HEAD.pack(len(body)) + body)

    def receive(self, timeout: float | None = None) -> Any:
        """The next message. Raises TimeoutError after about ``timeout`` seconds, EOFError when the other side is gone;
        what has arrived already is received whatever the timeout."""
        until = None if timeout is None else time.monotonic() + timeout
        (size,) = _HEAD.unpack(self._take(_HEAD.size, until))
        return pickle.loads(self._take(size, until))

    def send_file(self, descriptor: int, timeout: float | None = None) -> None:
        """Hand an open file over to a side that has read all messages and is in :meth:`receive_file`, or about to be:
        a file is lost on who reads the bytes around it as messages."""
        self._limit(timeout)
        socket.send_fds(self._socket, [b"f"], [descriptor])

    def receive_file(self) -> int:
        """An open file of the other side, as a descriptor of ours."""
        self._limit(None)
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise EOFError("the other side is gone")
        return descriptors[0]

    def close(self) -> None:
        self._socket.close()

    def _take(self, size: int, until: float | None) -> bytes:
        while len(self._read) < size:
            self._limit(None if until is None else until - time.monotonic())
            try:
                got = self._socket.recv(max(_CHUNK, size - len(self._read)))
            except ConnectionError as error:
                raise EOFError("the other side is gone") from error
            if not got:
                raise EOFError("the other side is gone")
            self._read += got
        taken = bytes(memoryview(self._read)[:size])
        del self._read[:size]
        return taken

    def _limit(self, timeout: float | None) -> None:
        """How long the socket may wait. Whole seconds where there are many, so that a step seldom changes it: that is a
        system call; and never 0, to pick up what lies ready."""
        if timeout is not None:
            timeout = max(timeout, 0.02) if timeout < 1.0 else float(math.ceil(timeout))
        if timeout != self._timeout:
            self._socket.settimeout(timeout)
            self._timeout = timeout


def pair() -> tuple[Channel, socket.socket]:
    """Our end, and the socket of the other end to give to a new process."""
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs


class SharedMemory:
    """Bytes that several processes see, without a name. ``SharedMemory.new`` makes them; a child maps them from the
    descriptor that it is sent."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Takes over ``descriptor``. Raises OSError when it cannot be mapped."""
        self.descriptor = descriptor
        self.size = size
        self.bytes = mmap.mmap(descriptor, size)

    @classmethod
    def new(cls, size: int) -> SharedMemory:
        """``size`` zeros. Raises OSError where the machine has no memory for them."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("worldmodel-envs")
        else:  # macOS
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, size)
            if hasattr(os, "posix_fallocate"):
                # Reserve now: running out later would end the process with SIGBUS.
                os.posix_fallocate(descriptor, 0, size)
            return cls(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise

    def close_descriptor(self) -> None:
        """Give the descriptor back; the bytes stay until nobody looks at them."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
