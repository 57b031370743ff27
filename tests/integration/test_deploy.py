"""The Kubernetes manifests: rendered, valid by schema, and in step with the programs they run."""

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from serving.configuration import load_settings
from serving.labelling.failures import NEVER_RETRY
from serving.labelling.settings import LabelSettings
from serving.pb.inference import grpc_service_pb2
from serving.pb.nvisa.v1 import cluster_pb2
from serving.settings import ServerSettings

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVER = ["base", "overlays/gpu"]
ALL = [*SERVER, "label-job", "bundle-loader", "data-loader"]
COMPONENTS = [
    "components/service-monitor",
    "components/alerts",
    "components/security",
    "components/mutual-tls",
    "components/tracing",
]
WORKLOADS = {"Deployment", "Job", "Pod"}
# What deploy/README.md promises, and the newest version that kubernetes-validate has the schemas of.
OLDEST = "1.33"
VERSION = ".".join(kubernetes_validate.latest_version().split(".")[:2])


def kustomize(folder):
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60)
    # What is deprecated is said on stderr.
    assert (done.returncode, done.stderr) == (0, "")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@cache
def rendered(name):
    return kustomize(KUBERNETES / name)


def only(name, kind):
    [found] = [document for document in rendered(name) if document["kind"] == kind]
    return found


def pod_of(document):
    return document["spec"] if document["kind"] == "Pod" else document["spec"]["template"]["spec"]


def pods(name):
    found = [pod_of(document) for document in rendered(name) if document["kind"] in WORKLOADS]
    assert found
    return found


def server_of(name):
    [container] = pods(name)[0]["containers"]
    return container, ServerSettings(_cli_parse_args=container["args"])


def matches(selector, labels):
    return selector.items() <= labels.items()


def test_every_kustomization_is_tested():
    folders = {
        path.parent.relative_to(KUBERNETES).as_posix() for path in KUBERNETES.rglob("kustomization.yaml")
    }
    assert folders == {*ALL, *COMPONENTS}


@pytest.mark.parametrize("version", [OLDEST, VERSION])
@pytest.mark.parametrize("name", ALL)
def test_every_document_is_valid(name, version):
    assert rendered(name)
    for document in rendered(name):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_are_strict():
    deployment = yaml.safe_load(yaml.safe_dump(only("base", "Deployment")))
    pod_of(deployment)["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(deployment, VERSION, strict=True)


@pytest.mark.parametrize("name", ALL)
def test_pods_meet_the_restricted_pod_security_standard(name):
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] >= 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        # NVISA_... variables made from a Service's name would be taken for settings.
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
        assert {next(iter(set(v) - {"name"})) for v in pod["volumes"]} <= {
            "persistentVolumeClaim",
            "emptyDir",
        }
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("name", ALL)
def test_pods_have_bounds_and_one_known_image(name):
    for pod in pods(name):
        for container in pod["containers"]:
            for bound in ("requests", "limits"):
                assert {"cpu", "memory"} <= set(container["resources"][bound])
            image, tag = container["image"].rsplit(":", 1)
            assert image == "nvisa-server"
            assert tag == PROJECT["version"] + ("-gpu" if name == "overlays/gpu" else "")
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]


@pytest.mark.parametrize("name", SERVER)
def test_the_servers_arguments_are_settings_that_fit_the_pod(name):
    container, settings = server_of(name)
    assert settings.host == "0.0.0.0"
    assert settings.device == ("cuda" if name == "overlays/gpu" else "cpu")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": settings.grpc_port, "metrics": settings.metrics_port}
    [models] = [
        mount for mount in container["volumeMounts"] if mount["mountPath"] == str(settings.model_repository)
    ]
    assert models["readOnly"] is True


@pytest.mark.parametrize("name", SERVER)
def test_draining_fits_into_the_time_kubernetes_gives(name):
    container, settings = server_of(name)
    assert pods(name)[0]["terminationGracePeriodSeconds"] > settings.drain_seconds + settings.grace_seconds
    probe = container["readinessProbe"]
    until_noticed = probe["failureThreshold"] * probe["periodSeconds"] + probe["timeoutSeconds"]
    assert until_noticed < settings.drain_seconds


@pytest.mark.parametrize("name", SERVER)
def test_probes_ask_the_health_service_by_names_it_knows(name):
    container, settings = server_of(name)
    services = {
        service.full_name
        for module in (cluster_pb2, grpc_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["grpc"]["port"] == settings.grpc_port
    assert container["startupProbe"]["grpc"]["service"] in services
    assert container["readinessProbe"]["grpc"]["service"] in services
    assert container["livenessProbe"]["grpc"]["service"] == ""
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 120


@pytest.mark.parametrize("name", SERVER)
def test_selectors_find_the_servers_pods_and_nothing_else(name):
    deployment, service = only(name, "Deployment"), only(name, "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    job_labels = only("label-job", "Job")["spec"]["template"]["metadata"]["labels"]
    loaders = [only(loader, "Pod")["metadata"]["labels"] for loader in ("bundle-loader", "data-loader")]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        only(name, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(name, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(
            constraint["labelSelector"]["matchLabels"]
            for constraint in pods(name)[0]["topologySpreadConstraints"]
        ),
    ]
    for selector in selectors:
        assert matches(selector, labels)
        assert not matches(selector, job_labels)
        assert not any(matches(selector, loader_labels) for loader_labels in loaders)
    assert service["spec"]["clusterIP"] == "None"
    ports = {port["name"] for port in pods(name)[0]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    rules = only(name, "NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == ports
    assert only(name, "ServiceAccount")["metadata"]["name"] == pods(name)[0]["serviceAccountName"]


def test_the_autoscaler_alone_decides_on_replicas():
    autoscaler, deployment = only("base", "HorizontalPodAutoscaler"), only("base", "Deployment")
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    budget = only("base", "PodDisruptionBudget")["spec"]["maxUnavailable"]
    assert budget < autoscaler["spec"]["minReplicas"] < autoscaler["spec"]["maxReplicas"]


def test_the_gpu_overlay_asks_for_a_gpu_and_has_no_autoscaler():
    assert "HorizontalPodAutoscaler" not in {document["kind"] for document in rendered("overlays/gpu")}
    assert only("overlays/gpu", "Deployment")["spec"]["replicas"] == 1
    container, _ = server_of("overlays/gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    base = only("base", "Deployment")["spec"]["template"]["spec"]["containers"][0]
    changed = {"image", "args", "env", "resources"}
    assert {key for key in container | base if container.get(key) != base.get(key)} == changed


def test_the_job_covers_every_shard_once():
    job = only("label-job", "Job")["spec"]
    [container] = pod_of(only("label-job", "Job"))["containers"]
    assert container["command"] == ["tini", "--", "nvisa-label"]
    assert "nvisa-label" in PROJECT["scripts"]
    shards = []
    for index in range(job["completions"]):
        args = [arg.replace("$(JOB_COMPLETION_INDEX)", str(index)) for arg in container["args"]]
        settings = LabelSettings(_cli_parse_args=args)
        assert settings.resume
        shards.append((settings.shard_index, settings.shard_count))
    assert shards == [(index, job["completions"]) for index in range(job["completions"])]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert mounts == {"/models": True, "/data": False, "/tmp": False}
    for path in (settings.model, settings.input, settings.output):
        assert any(path.is_relative_to(mount) for mount in mounts)


def test_the_job_retries_what_can_succeed_and_nothing_else():
    job = only("label-job", "Job")["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["backoffLimitPerIndex"] > 0
    assert job["podReplacementPolicy"] == "Failed"
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    ignore, fail = job["podFailurePolicy"]["rules"]
    assert ignore["action"] == "Ignore"
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert fail["action"] == "FailIndex"
    assert fail["onExitCodes"]["values"] == [NEVER_RETRY]
    assert fail["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]


@pytest.mark.parametrize("name", ALL)
def test_claims_that_are_mounted_exist(name):
    everything = [document for each in ALL for document in rendered(each)]
    claims = {d["metadata"]["name"] for d in everything if d["kind"] == "PersistentVolumeClaim"}
    for pod in pods(name):
        used = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "emptyDir" not in v}
        assert used
        assert used <= claims


@pytest.mark.parametrize("name", SERVER)
def test_the_service_monitor_finds_the_metrics_port(tmp_path, name):
    overlay = {
        "resources": [os.path.relpath(KUBERNETES / name, tmp_path)],
        "components": [os.path.relpath(KUBERNETES / "components/service-monitor", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    documents = {document["kind"]: document for document in kustomize(tmp_path)}
    monitor, service = documents["ServiceMonitor"]["spec"], documents["Service"]
    assert matches(monitor["selector"]["matchLabels"], service["metadata"]["labels"])
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }


@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("name", SERVER)
def test_the_secured_server_reads_mounted_secrets_and_is_probed_in_plaintext(
    tmp_path, monkeypatch, name, mutual
):
    components = ["components/security", "components/mutual-tls"][: 1 + mutual]
    overlay = {
        "resources": [os.path.relpath(KUBERNETES / name, tmp_path)],
        "components": [os.path.relpath(KUBERNETES / component, tmp_path) for component in components],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    documents = kustomize(tmp_path)
    for document in documents:
        kubernetes_validate.validate(document, OLDEST, strict=True)
    by_kind = {document["kind"]: document for document in documents}
    pod = pod_of(by_kind["Deployment"])
    [container] = pod["containers"]
    plain, _ = server_of(name)
    assert container["args"] == plain["args"]
    assert [each for each in plain.get("env", []) if each not in container["env"]] == []
    for each in container["env"]:
        monkeypatch.setenv(each["name"], each["value"])
    settings = load_settings(ServerSettings, container["args"])  # refuses tokens without TLS on 0.0.0.0
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    secrets = {
        mount["mountPath"]: volumes[mount["name"]]["secret"]["secretName"]
        for mount in container["volumeMounts"]
        if "secret" in volumes[mount["name"]]
    }
    assert all("subPath" not in mount for mount in container["volumeMounts"])  # would never be updated
    read = {
        (secrets[str(path.parent)], path.name)
        for path in (settings.tls_certificate, settings.tls_key, settings.tls_client_ca, settings.token_file)
        if path is not None
    }
    # The keys of a Secret of type kubernetes.io/tls, and the file that deploy/README.md puts into the other.
    expected = {("nvisa-tls", "tls.crt"), ("nvisa-tls", "tls.key"), ("nvisa-tokens", "tokens")}
    assert read == (expected | {("nvisa-tls", "ca.crt")} if mutual else expected)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        "grpc": settings.grpc_port,
        "metrics": settings.metrics_port,
        "health": settings.health_port,
    }
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[kind]["grpc"] == plain[kind]["grpc"] | {"port": settings.health_port}
    assert "appProtocol" not in next(
        port for port in by_kind["Service"]["spec"]["ports"] if port["name"] == "grpc"
    )


def test_the_data_loader_is_another_pod_with_what_the_job_mounts():
    bundle, data = only("bundle-loader", "Pod"), only("data-loader", "Pod")
    assert bundle["metadata"]["name"] != data["metadata"]["name"]
    [mount], [volume] = data["spec"]["containers"][0]["volumeMounts"], data["spec"]["volumes"]
    [job] = pod_of(only("label-job", "Job"))["containers"]
    assert mount in job["volumeMounts"]
    assert volume in pod_of(only("label-job", "Job"))["volumes"]


@pytest.mark.parametrize("name", SERVER)
def test_traces_are_on_and_let_out_of_the_pod(tmp_path, monkeypatch, name):
    overlay = {
        "resources": [os.path.relpath(KUBERNETES / name, tmp_path)],
        "components": [os.path.relpath(KUBERNETES / "components/tracing", tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    by_kind = {document["kind"]: document for document in kustomize(tmp_path)}
    for kind in ("Deployment", "NetworkPolicy"):
        kubernetes_validate.validate(by_kind[kind], OLDEST, strict=True)
    [container] = pod_of(by_kind["Deployment"])["containers"]
    for each in container["env"]:
        monkeypatch.setenv(each["name"], each["value"])
    assert load_settings(ServerSettings, container["args"]).tracing
    collector = urlsplit(os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"])
    names, spans = by_kind["NetworkPolicy"]["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    [to] = spans["to"]
    assert to["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": collector.hostname.partition(".")[2]
    }
    assert spans["ports"] == [{"port": collector.port}]
    assert by_kind["NetworkPolicy"]["spec"]["ingress"] == only(name, "NetworkPolicy")["spec"]["ingress"]


def test_the_readme_names_only_what_is_there():
    text = (ROOT / "deploy" / "README.md").read_text()
    assert f"Kubernetes {OLDEST} or newer" in text
    named = {path.rstrip(".") for path in re.findall(r"deploy/kubernetes/[\w/.-]+", text)}
    assert {f"deploy/kubernetes/{name}" for name in (*ALL, *COMPONENTS)} <= named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
