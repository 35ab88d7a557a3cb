"""A network for the Azure tests that has a metadata service."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from fcntl import ioctl

METADATA_ADDRESS = ("169.254.169.254", 80)

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR = 0x8913, 0x8914, 0x8916
IFF_UP = 1


class PrivateNetwork:
    """A network of this test run's own, in which the metadata service's address is free to be used.

    Linux gives each thread its own view of the network, so a thread that is `inside` has this one, and so have sockets
    and threads made there; everything else is as before. Needs root.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = -1
        problem: list[BaseException] = []

        def make() -> None:
            try:
                self._call("unshare", CLONE_NEWNET)
                self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
                _bring_up("lo")
                _bring_up("lo:0", METADATA_ADDRESS[0])
            except OSError as error:
                problem.append(error)

        # In a thread that ends, so that no thread of the test run is left in there.
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if problem:
            raise RuntimeError(
                "a network of its own needs root; without it, run `unshare --user --map-root-user --net "
                "python -m pytest tests_py/test_azure_metadata.py`, where the system permits that"
            ) from problem[0]

    def _call(self, name: str, *arguments: int) -> None:
        if getattr(self._libc, name)(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Within the block, this thread is in the network."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self._call("setns", self._fd, CLONE_NEWNET)
            try:
                yield
            finally:
                self._call("setns", outside, CLONE_NEWNET)
        finally:
            os.close(outside)

    def close(self) -> None:
        os.close(self._fd)


def _bring_up(interface: str, address: str | None = None) -> None:
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        if address:
            request = struct.pack("16sH2s4s8s", name, socket.AF_INET, b"", socket.inet_aton(address), b"")
            ioctl(control, SIOCSIFADDR, request)
        answer = ioctl(control, SIOCGIFFLAGS, struct.pack("16sH14s", name, 0, b""))
        (flags,) = struct.unpack("16xH14x", answer)
        ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14s", name, flags | IFF_UP, b""))
