"""How a pool and a worker process talk: messages over a socket with a deadline on every wait, observations through
anonymous shared memory. Standard library only, because a worker imports this before it sets its thread counts.

The shared memory has no name: it is handed over as a file descriptor and goes with the last process that holds it, so
nothing is ever left in /dev/shm, whoever is killed and how; nor does the size of /dev/shm matter.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import tempfile
import time
from typing import Any

_HEAD = struct.Struct("!Q")


class Channel:
    """Pickled messages between a process and the child it started. Both ends are our own code."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, message: object, timeout: float | None = None) -> None:
        """Raises TimeoutError after ``timeout`` seconds, OSError when the other side is gone."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._socket.settimeout(timeout)
        self._socket.sendall(_HEAD.pack(len(body)) + body)

    def receive(self, timeout: float | None = None) -> Any:
        """The next message. Raises TimeoutError after ``timeout`` seconds, EOFError when the other side is gone."""
        until = None if timeout is None else time.monotonic() + timeout
        (size,) = _HEAD.unpack(self._read(_HEAD.size, until))
        return pickle.loads(self._read(size, until))

    def send_file(self, descriptor: int, timeout: float | None = None) -> None:
        """Hand an open file over; the other side calls :meth:`receive_file`."""
        self._socket.settimeout(timeout)
        socket.send_fds(self._socket, [b"f"], [descriptor])

    def receive_file(self) -> int:
        """An open file of the other side, as a descriptor of ours."""
        self._socket.settimeout(None)
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise EOFError("the other side is gone")
        return descriptors[0]

    def close(self) -> None:
        self._socket.close()

    def _read(self, size: int, until: float | None) -> bytearray:
        body = bytearray(size)
        view, have = memoryview(body), 0
        while have < size:
            # A deadline that has passed still picks up what lies ready.
            self._socket.settimeout(None if until is None else max(until - time.monotonic(), 0.02))
            try:
                got = self._socket.recv_into(view[have:])
            except ConnectionError as error:
                raise EOFError("the other side is gone") from error
            if got == 0:
                raise EOFError("the other side is gone")
            have += got
        return body


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
