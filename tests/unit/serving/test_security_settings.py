"""Which combinations of the security settings are refused, before anything listens."""

import pytest

from serving.configuration import InvalidSettings, load_settings
from serving.labelling.settings import LabelSettings
from serving.metrics import Metrics
from serving.security import Security
from serving.settings import ServerSettings
from serving.start_error import StartError
from tests.certificates import Authority

TLS = ["--tls-certificate", "c.pem", "--tls-key", "k.pem"]
TOKENS = ["--token-file", "tokens"]
ANY = ["--host", "0.0.0.0"]


def load(*flags):
    return load_settings(ServerSettings, ["--model-repository", "models", *flags])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (TLS[:2], "go together"),
        (TLS[2:], "go together"),
        (["--tls-client-ca", "ca.pem"], "--tls-client-ca needs TLS"),
        (["--health-needs-token"], "there are no tokens"),
        (TOKENS + ANY, "tokens would cross the network to 0.0.0.0 in plaintext"),
        ([*TOKENS, "--host", "nvisa.example"], "in plaintext"),
    ],
)
def test_refused(flags, says):
    with pytest.raises(InvalidSettings) as caught:
        load(*flags)
    assert says in str(caught.value)
    assert not str(caught.value).startswith("Value error")


def test_a_job_without_a_server_refuses_what_is_for_one():
    flags = ["--model", "m", "--input", "i", "--output", "o", "--ca", "ca.pem", "--token-file", "t"]
    with pytest.raises(InvalidSettings, match="--ca, --token-file: for a server only, and there is no"):
        load_settings(LabelSettings, flags)
    assert load_settings(LabelSettings, [*flags, "--target", "nvisa:8001"]).target == "nvisa:8001"


@pytest.mark.parametrize(
    "flags",
    [
        TOKENS,
        [*TOKENS, "--host", "::1"],
        TOKENS + TLS + ANY,
        [*TOKENS, *ANY, "--allow-insecure-tokens"],
        [*TLS, "--tls-client-ca", "ca.pem", *ANY],
        ANY,
    ],
)
def test_allowed(flags):
    load(*flags)


def test_what_is_in_the_files_stops_the_start(tmp_path):
    authority = Authority(tmp_path)
    good, other = authority.issue("good"), authority.issue("other")
    (tmp_path / "tokens").write_text("inference:hunter2\n")
    pair = {"tls_certificate": good.cert, "tls_key": good.key}
    for values, says in (
        ({"tls_certificate": good.cert, "tls_key": other.key}, "the key does not belong"),
        ({"tls_certificate": good.cert, "tls_key": tmp_path / "none"}, "none: No such file"),
        (pair | {"tls_client_ca": good.key}, "the client CA is not PEM"),
        ({"token_file": tmp_path / "tokens"}, "tokens: line 1: the token has 7 characters"),
    ):
        with pytest.raises(StartError, match=says) as caught:
            Security(ServerSettings(model_repository="models", **values), Metrics())
        assert "hunter2" not in str(caught.value)


def test_what_is_in_force_is_described_and_expiry_shown_only_with_tls(tmp_path):
    pair = Authority(tmp_path).issue("server")
    name = "nvisa_certificate_expiry_timestamp_seconds"
    for values, tls in (
        ({}, "off"),
        ({"tls_certificate": pair.cert, "tls_key": pair.key}, "server"),
        ({"tls_certificate": pair.cert, "tls_key": pair.key, "tls_client_ca": tmp_path / "ca.pem"}, "mutual"),
    ):
        metrics = Metrics()
        security = Security(ServerSettings(model_repository="models", **values), metrics)
        assert security.describe() == {"tls": tls, "tokens": "off"}
        assert (metrics.registry.get_sample_value(name, {"certificate": "server"}) is None) == (tls == "off")
        shown = metrics.registry.get_sample_value(name, {"certificate": "client_ca"})
        assert (shown is None) == (tls != "mutual")
