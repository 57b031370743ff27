import socket

import pytest

from serving.reserved_port import ReservedPort
from serving.start_error import StartError


def listener(port):
    shared = socket.socket()
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(("127.0.0.1", port))
    shared.listen()
    return shared


@pytest.fixture
def reserved():
    port = ReservedPort("127.0.0.1", 0, "--grpc-port")
    yield port
    port.close()


def test_workers_share_it_and_only_those_that_listen_get_connections(reserved):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", reserved.port))
    with listener(reserved.port) as first, listener(reserved.port) as second:
        first.settimeout(0)
        second.settimeout(0)
        accepted = 0
        for _ in range(40):
            with socket.create_connection(("127.0.0.1", reserved.port)):
                for each in (first, second):
                    try:
                        each.accept()[0].close()
                        accepted += 1
                    except BlockingIOError:
                        pass
        assert accepted == 40


@pytest.mark.parametrize("listening", [False, True])
def test_a_port_that_others_share_is_not_joined(reserved, listening):
    if listening:
        with (
            listener(reserved.port),
            pytest.raises(StartError, match="the port is taken; pass another --grpc"),
        ):
            ReservedPort("127.0.0.1", reserved.port, "--grpc-port")
    else:
        with pytest.raises(StartError, match="the port is taken"):
            ReservedPort("127.0.0.1", reserved.port, "--grpc-port")


def test_a_foreign_address_is_refused():
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0 .* --host"):
        ReservedPort("192.0.2.1", 0, "--grpc-port")
    with pytest.raises(StartError, match="no-such-host"):
        ReservedPort("no-such-host.invalid", 0, "--grpc-port")
