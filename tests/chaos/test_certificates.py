"""A certificate that expires while it is served: who is connected stays, who comes is told, until it is renewed."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from serving.client import ClusterClient, ClusterServiceError, Security
from tests.certificates import Authority
from tests.chaos.load import total
from tests.servers import TIMEOUT, ServerProcess

LIFETIME = timedelta(seconds=8)


def test_a_certificate_that_expires_costs_those_who_come_and_nobody_who_is_there(
    repository, answers, tmp_path
):
    authority = Authority(tmp_path)
    served = authority.issue("server")
    security = Security(ca=authority.ca)
    flags = ("--tls-certificate", str(served.cert), "--tls-key", str(served.key), "--reload-seconds", "0.1")

    def ask(client):
        """Call, and look at the answer."""
        result = client.assign(answers.rows[3:9], model="toy", probabilities=True, timeout=TIMEOUT)
        assert not answers.wrong(slice(3, 9), result.clusters, result.probabilities)

    def come(server):
        """Connect anew, once."""
        with ClusterClient(server.grpc_target, security=security) as client:
            ask(client)

    def until(condition):
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    with ServerProcess(repository, tmp_path, *flags) as server:
        calls, crashes, done = [0], [], threading.Event()

        def stay(client):
            try:
                while not done.is_set():
                    ask(client)
                    calls[0] += 1
            except BaseException as error:
                crashes.append(error)

        def stays():
            before = calls[0]
            until(lambda: calls[0] > before + 20 or crashes)
            assert not crashes

        def reloads():
            # Only these: a pair whose key is not there yet may have been looked at, and counts as a failure.
            return total(server, "nvisa_credential_reloads_total", outcome="success")

        come(server)
        expires = datetime.now(UTC) + LIFETIME
        served.replace(authority.issue("short", not_after=expires))
        until(lambda: reloads() == 1)
        with ClusterClient(server.grpc_target, security=security) as client:
            staying = threading.Thread(target=stay, args=(client,))
            staying.start()
            try:
                stays()
                come(server)
                expiry = total(server, "nvisa_certificate_expiry_timestamp_seconds")
                assert expiry == pytest.approx(expires.timestamp(), abs=1)
                until(lambda: datetime.now(UTC) > expires)
                stays()
                with pytest.raises(ClusterServiceError) as caught:
                    come(server)
                assert caught.value.code is grpc.StatusCode.UNAVAILABLE
                assert caught.value.message.startswith("the server's certificate has expired")
                assert total(server, "nvisa_certificate_expiry_timestamp_seconds") == expiry
                # An expired one in its place changes nothing, and is told.
                served.replace(authority.issue("late", not_after=datetime.now(UTC) - timedelta(seconds=1)))
                until(lambda: "the certificate expired on" in server.log_text())
                assert total(server, "nvisa_credentials_stale") == 1
                stays()
                served.replace(authority.issue("renewed"))
                until(lambda: total(server, "nvisa_credentials_stale") == 0 and reloads() == 2)
                come(server)
                stays()
            finally:
                done.set()
                staying.join(TIMEOUT)
        assert server.get("/readyz")[0] == 200
        server.terminate()
        assert server.wait() == 0
    assert not crashes
