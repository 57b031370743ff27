"""What the client refuses before it connects, and what it says of connections that failed."""

import os

import grpc
import pytest

from serving.client import ClusterClient, ClusterServiceError, Security, SecurityError
from serving.client.security import TokenSource
from serving.tokens import Role
from tests.certificates import Authority, put

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def token_file(tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    return tmp_path / "token"


def test_a_token_goes_in_plaintext_to_this_machine_alone(token_file, authority):
    for target in ("nvisa:8001", "10.0.0.1:8001", "dns:///nvisa:8001"):
        for security in (Security(token_file=token_file), Security(token=TOKEN)):
            with pytest.raises(SecurityError, match="would be sent in plaintext; use TLS") as caught:
                ClusterClient(target, security=security)
            assert TOKEN not in str(caught.value)
            assert TOKEN not in repr(security)
        for allowed in ({"tls": True}, {"ca": authority.ca}, {"allow_insecure_token": True}):
            ClusterClient(target, security=Security(token=TOKEN, **allowed)).close()
    for target in ("localhost:8001", "127.0.0.1:8001", "unix:/run/nvisa.sock"):
        assert Security(token=TOKEN).channel_options(target) == [("grpc.enable_http_proxy", 0)]


def test_files_that_cannot_be_used_are_named(tmp_path, authority):
    mine, other = authority.issue("mine"), authority.issue("other")
    (tmp_path / "garbage").write_bytes(b"\xff garbage")
    none, garbage = tmp_path / "none", tmp_path / "garbage"
    for security, says in (
        (Security(ca=none), "none: No such file"),
        (Security(ca=garbage), "garbage: no PEM certificates"),
        (Security(ca=mine.key), "no PEM certificates"),
        (Security(cert=mine.cert), "go together"),
        (Security(key=mine.key), "go together"),
        (Security(cert=mine.cert, key=other.key), "not a PEM certificate and its unencrypted private key"),
        (Security(cert=mine.cert, key=none), "none: No such file"),
        (Security(token_file=none), "none: No such file"),
        (Security(token_file=garbage), "2 words"),
        (Security(token=""), "0 words"),
        (Security(token="two words"), "2 words"),
        *((Security(token=f"{role}:{TOKEN}"), "begins with a role") for role in Role),
        (Security(token=f"admin:{TOKEN}\ninference:another-token-123"), "begins with a role"),
        (Security(token=TOKEN, token_file=none), "both token and token_file"),
    ):
        with pytest.raises(SecurityError, match=says):
            ClusterClient("localhost:8001", security=security)
    ClusterClient("nvisa:8001", security=Security(cert=mine.cert, key=mine.key)).close()


def test_a_token_file_is_read_again_when_it_was_replaced(token_file):
    source = TokenSource(Security(token_file=token_file))
    assert source.metadata() == (("authorization", f"Bearer {TOKEN}"),)
    stamp = token_file.stat()
    put(token_file, b"another-token-123")
    os.utime(token_file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert source.metadata() == (("authorization", "Bearer another-token-123"),)
    token_file.unlink()
    with pytest.raises(SecurityError, match="No such file"):
        source.metadata()


class Failed(grpc.RpcError):
    def __init__(self, code, details):
        self.code = lambda: code
        self.details = lambda: details

    def trailing_metadata(self):
        return (("x-request-id", "r-1"),)


CLOSED = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: Socket closed"


@pytest.mark.parametrize(
    ("code", "details", "security", "says"),
    [
        ("UNAVAILABLE", CLOSED, Security(), "if it speaks TLS, pass --tls or --ca"),
        ("UNAVAILABLE", CLOSED, Security(tls=True), "pass --cert and --key"),
        ("UNAVAILABLE", CLOSED, Security(tls=True, cert="c", key="k"), "may not trust this client's"),
        ("UNAVAILABLE", "failed to connect: Connection refused", Security(), None),
        ("UNAVAILABLE", "model toy is loading; Socket closed", Security(), None),
        ("UNAUTHENTICATED", "no token", Security(), "--token-file"),
        ("UNAUTHENTICATED", "the token is none of this server's", Security(token=TOKEN), None),
    ],
)
def test_hints_are_given_where_they_may_help_and_what_gRPC_said_is_kept(code, details, security, says):
    error = ClusterServiceError.of(Failed(grpc.StatusCode[code], details), "host:1", security)
    assert str(error).startswith(f"host:1: {code}: ")
    assert details in str(error)
    assert str(error) == f"host:1: {code}: {details}" if says is None else says in str(error)
