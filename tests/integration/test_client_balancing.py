"""One client and several servers: calls go round, past the dead, and to those that came later."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import numpy as np
import pytest

from serving.client import AsyncClusterClient, ClusterClient
from serving.engine import FakeEngine
from tests.bundles import make_bundle, random_rows
from tests.servers import fake_engine, in_process

ASSIGN = {"method": "nvisa.v1.ClusterService/Assign", "code": "OK"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("balancing")
    make_bundle(path)
    return path


def target(*servers):
    return "ipv4:" + ",".join(f"127.0.0.1:{server.grpc_port}" for server in servers)


def answered(server):
    return server.metrics.registry.get_sample_value("nvisa_requests_total", ASSIGN) or 0


async def call(client, n=1):
    x = random_rows(3)
    for _ in range(n):
        result = await client.assign(x, model="toy")
        np.testing.assert_array_equal(result.clusters, FakeEngine(10).assign(x).clusters)


async def test_calls_go_round_and_past_a_server_that_is_gone(repository):
    async with contextlib.AsyncExitStack() as stack:
        stays = await stack.enter_async_context(in_process(repository, fake_engine))
        async with in_process(repository, fake_engine) as goes:
            client = await stack.enter_async_context(AsyncClusterClient(target(stays, goes)))
            while not (answered(stays) and answered(goes)):  # until both are connected to
                await call(client)
            before = answered(stays), answered(goes)
            await call(client, 40)
            assert (answered(stays) - before[0], answered(goes) - before[1]) == (20, 20)
        before = answered(stays)
        await call(client, 40)
        assert answered(stays) - before == 40


@pytest.mark.parametrize("compression", ["none", "deflate", "gzip"])
async def test_compressed_calls_are_answered(repository, compression):
    async with in_process(repository, fake_engine) as server:
        x = random_rows(50)

        def ask():
            with ClusterClient(target(server), compression=compression) as client:
                return client.assign(x, model="toy").clusters

        np.testing.assert_array_equal(await asyncio.to_thread(ask), FakeEngine(10).assign(x).clusters)


@pytest.mark.parametrize("age", [0.0, 0.2])
async def test_old_connections_are_made_anew_and_no_call_is_lost(repository, age):
    async with (
        in_process(repository, fake_engine, max_connection_age=age) as server,
        AsyncClusterClient(target(server)) as client,
    ):
        connections = set()
        for _ in range(60):
            await call(client)
            connections |= client_ports(server.grpc_port)
            await asyncio.sleep(0.02)
        assert (len(connections) > 1) is (age > 0)


def client_ports(port):
    """The other ends of all connections to ``port``."""
    lines = [
        line for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    ends = [[int(end.split(":")[1], 16) for end in line.split()[1:3]] for line in lines]
    return {remote for local, remote in ends if local == port and remote}
