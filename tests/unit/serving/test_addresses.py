import pytest

from serving.addresses import is_loopback, target_is_local


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "[::1]"])
def test_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "10.0.0.1", "nvisa", "localhost.example.com", "127.0.0.1.example.com"]
)
def test_what_may_be_another(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "target",
    [
        *("localhost:8001", "127.0.0.1:8001", "[::1]:8001", "::1", "localhost"),
        *("dns:localhost:8001", "dns:///localhost:8001"),
        *("ipv4:127.0.0.1:8001", "ipv4:127.0.0.1:8001,127.0.0.2:8001", "ipv6:[::1]:8001"),
        *("unix:/run/nvisa.sock", "unix:///run/nvisa.sock", "unix-abstract:nvisa"),
    ],
)
def test_local_targets(target):
    assert target_is_local(target)


@pytest.mark.parametrize(
    "target",
    [
        *("nvisa:8001", "10.0.0.1:8001", "[2001:db8::1]:8001", "0.0.0.0:8001", ""),
        *("dns:///nvisa:8001", "dns://localhost/nvisa:8001", "dns:nvisa", "dns://10.0.0.1/localhost:8001"),
        *("ipv4:127.0.0.1:8001,10.0.0.1:8001", "xds:///localhost:8001", "vsock:1:8001"),
    ],
)
def test_other_targets(target):
    assert not target_is_local(target)
