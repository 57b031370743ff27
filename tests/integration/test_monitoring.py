"""Alerts and dashboard: of metrics that exist, right by promtool, and evaluated by a Prometheus that scrapes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.bundle import read_bundle
from serving.engine import OnnxEngine
from serving.labels import LABELS_FILE
from serving.pb.nvisa.v1 import cluster_pb2 as pb
from serving.pb.nvisa.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.bundles import make_bundle, random_rows
from tests.servers import TIMEOUT, ServerProcess, get

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "nvisa.rules.yaml"
RULE_TESTS = ROOT / "deploy" / "prometheus" / "nvisa.rules.test.yaml"
OPERATOR_RULES = ROOT / "deploy" / "kubernetes" / "components" / "alerts" / "rules.yaml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "nvisa.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed (on Debian: apt-get install prometheus)",
)


def expressions():
    found = {f"alert {name}": rule["expr"] for name, rule in ALERTS.items()}
    for panel in PANELS:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found


def runnable(expression):
    """``expression`` with Grafana's variables filled in."""
    values = {"$__rate_interval": "1m", "$__range": "5m", "$job": ".*", "$model": ".*", "$version": ".*"}
    for name, value in values.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    make_bundle(path, novelty=True)
    make_bundle(path, version=2, seed=1, novelty=True)
    (path / "toy" / LABELS_FILE).write_text("stable: 1\nshadow: {version: 2}")
    return path


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    """A server that has been sent 1,200 rows, all of one cluster, a call of another model, and a bad one."""
    engine = OnnxEngine(read_bundle(repository / "toy" / "1"), "cpu")
    rows = random_rows(200)
    clusters = engine.assign(rows).clusters
    rows = rows[clusters == clusters[0]]
    rows = np.tile(rows, (1200 // len(rows) + 1, 1, 1))[:1200]
    tensor = pb.Tensor(dtype=pb.DATA_TYPE_UINT8, shape=rows.shape, data=rows.tobytes())
    with (
        ServerProcess(repository, tmp_path_factory.mktemp("server")) as server,
        grpc.insecure_channel(server.grpc_target) as channel,
    ):
        stub = ClusterServiceStub(channel)

        def send():
            stub.Assign(pb.AssignRequest(model_name="toy", input=tensor), timeout=TIMEOUT)
            with pytest.raises(grpc.RpcError):
                stub.Assign(pb.AssignRequest(model_name="nope", input=tensor), timeout=TIMEOUT)

        send()
        server.send = send
        yield server


@pytest.fixture(scope="module")
def exposed(server):
    """Names of the samples that the server shows, and the labels of each."""
    # Prometheus' own, and the supervisor's, which tests/integration/test_workers.py reads.
    labels = {"up": set(), "nvisa_worker_restarts_total": set()}
    for family in text_string_to_metric_families(server.get("/metrics")[1]):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


@pytest.mark.parametrize("where", expressions())
def test_every_metric_and_label_that_is_asked_for_is_there(exposed, where):
    expression = expressions()[where]
    used = re.findall(r"\b(nvisa_\w+|process_\w+|up)\b(?:\{([^}]*)\})?", expression)
    assert used
    for name, selector in used:
        assert name in exposed, name
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert labels <= exposed[name] | {"job", "instance"}, name
    grouped = {
        label.strip()
        for names in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
        for label in names.split(",")
    }
    known = set().union(*(exposed[name] for name, _ in used)) | {"job", "instance", ""}
    assert grouped <= known


def test_every_metric_of_the_server_is_looked_at_somewhere(exposed):
    everything = " ".join(expressions().values())
    ours = {name for name in exposed if name.startswith("nvisa_") and not name.endswith("_created")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours}
    assert {name for name in families if name not in everything} == set()


def test_every_alert_is_tested_both_ways_and_has_its_line_in_the_runbook():
    cases = [
        case for test in yaml.safe_load(RULE_TESTS.read_text())["tests"] for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(ALERTS)
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == set(ALERTS)
    runbook = (ROOT / "deploy" / "README.md").read_text().partition("## When an alert fires")[2]
    assert set(re.findall(r"^\| `(Nvisa\w+)` \|", runbook, re.MULTILINE)) == set(ALERTS)
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]


def test_the_operators_rules_are_the_same():
    assert yaml.safe_load(OPERATOR_RULES.read_text())["spec"] == yaml.safe_load(RULES.read_text())


def test_the_dashboard_is_one_that_grafana_can_lay_out():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & mine, panel["title"]
        cells |= mine
    for panel in PANELS:
        assert panel["title"]
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        for part in (panel, *panel["targets"]):
            assert part["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval", "__range"} <= variables


@needs_prometheus
@pytest.mark.parametrize("command", [("check", "rules", RULES), ("test", "rules", RULE_TESTS)])
def test_promtool(command):
    done = subprocess.run(
        ["promtool", *command], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    """Address of a Prometheus that has scraped ``server`` several times, between which calls were made."""
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "500ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "nvisa", "static_configs": [{"targets": [server.http.removeprefix("http://")]}]}
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    command = [
        *(
            "prometheus",
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
        ),
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + TIMEOUT
        scrapes = 0
        while scrapes < 3:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
            if not answers(address):
                continue
            found = ask(address, "count_over_time(nvisa_ready[5m])")
            if found and int(found[0]["value"][1]) > scrapes:
                scrapes = int(found[0]["value"][1])
                server.send()
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)


def answers(address):
    try:
        return get(f"http://{address}/-/ready")[0] == 200
    except OSError:  # it does not listen yet
        return False


def ask(address, expression):
    query = urllib.parse.urlencode({"query": expression})
    status, body = get(f"http://{address}/api/v1/query?{query}")
    assert status == 200, body
    return json.loads(body)["data"]["result"]


@needs_prometheus
def test_every_panel_has_something_to_show(prometheus):
    empty = {
        where
        for where, expression in expressions().items()
        if where.startswith("panel ") and not ask(prometheus, runnable(expression))
    }
    assert empty == set()


@needs_prometheus
def test_every_rule_is_evaluated_and_the_right_ones_wait_to_fire(prometheus):
    end = time.monotonic() + TIMEOUT
    while True:
        groups = json.loads(get(f"http://{prometheus}/api/v1/rules")[1])["data"]["groups"]
        rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
        waiting = {name for name, rule in rules.items() if rule["state"] != "inactive"}
        evaluated = {name for name, rule in rules.items() if rule["health"] == "ok"}
        if evaluated == set(ALERTS) and "NvisaDrift" in waiting:
            break
        assert time.monotonic() < end, (evaluated, waiting)
        time.sleep(0.1)
    assert not waiting & {
        "NvisaDown",
        "NvisaNoServerReady",
        "NvisaNotReady",
        "NvisaErrors",
        "NvisaCpuFallback",
    }


@needs_prometheus
def test_prometheus_says_what_the_server_does(prometheus, server):
    [rows] = ask(prometheus, 'sum(nvisa_cluster_rows_total{model="toy", version="1"})')
    sent = [
        int(float(line.split()[-1]))
        for line in server.get("/metrics")[1].splitlines()
        if line.startswith("nvisa_rows_total")
    ]
    assert 0 < int(rows["value"][1]) <= sum(sent)
    assert int(rows["value"][1]) % 1200 == 0
