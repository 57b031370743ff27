from datetime import UTC, datetime, timedelta

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from serving.certificates import check_certificates
from serving.reloading import CredentialError

CA = trustme.CA()
SERVER, OTHER = CA.issue_cert("localhost"), CA.issue_cert("localhost")
LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)


def chain(certificate):
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems)


def key(certificate):
    return certificate.private_key_pem.bytes()


def with_key(private_key, password=None):
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return [chain(SERVER), private_key.private_bytes(serialization.Encoding.PEM, form, lock)]


@pytest.mark.parametrize("key_type", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])
def test_a_pair_that_fits_is_taken_with_its_expiry(key_type):
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    certificate = CA.issue_cert("localhost", not_after=ends, key_type=key_type)
    found = check_certificates([chain(certificate), key(certificate)])
    assert found.expires == ends
    assert (found.client_ca, found.client_ca_expires) == (None, None)
    assert b"PRIVATE" not in repr(found).encode()


def test_the_chain_expires_with_its_first_certificate_to_do_so():
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    short = CA.issue_cert("localhost", not_after=soon)
    both = chain(SERVER) + chain(short)
    assert check_certificates([both, key(SERVER)]).expires == soon


def test_client_authorities_count_as_long_as_one_of_them_does():
    found = check_certificates([chain(SERVER), key(SERVER), CA.cert_pem.bytes()])
    assert found.client_ca == CA.cert_pem.bytes()
    expired = chain(CA.issue_cert("localhost", not_after=LONG_AGO))
    both = check_certificates([chain(SERVER), key(SERVER), expired + CA.cert_pem.bytes()])
    assert both.client_ca_expires == found.client_ca_expires
    with pytest.raises(CredentialError, match="client CA expired on 2025-01-01 00:00:00"):
        check_certificates([chain(SERVER), key(SERVER), expired])


def weak_rsa():
    return rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (lambda: [chain(SERVER), key(OTHER)], "does not belong to the first certificate"),
        (lambda: [CA.cert_pem.bytes() + chain(SERVER), key(SERVER)], "the server's own comes first"),
        (lambda: [chain(SERVER)[:200], key(SERVER)], "the certificate is not PEM, or is cut short"),
        (lambda: [b"", key(SERVER)], "the certificate is not PEM"),
        (lambda: [chain(SERVER), key(SERVER)[:100]], "the key is not a PEM private key, or is cut short"),
        (lambda: [chain(SERVER), b""], "the key is not a PEM private key"),
        (lambda: [chain(SERVER), key(SERVER), b"\xff"], "the client CA is not PEM"),
        (lambda: with_key(weak_rsa(), b"secret"), "the key is encrypted"),
        (lambda: with_key(weak_rsa()), "of a kind that cannot be served"),
        (lambda: with_key(ed25519.Ed25519PrivateKey.generate()), "cannot be served"),
        (lambda: with_key(ec.generate_private_key(ec.SECP521R1())), "RSA of 2048 bits or more, or ECDSA"),
    ],
)
def test_what_gRPC_would_fail_every_handshake_with_is_refused(contents, says):
    with pytest.raises(CredentialError, match=says) as caught:
        check_certificates(contents())
    assert "PRIVATE" not in str(caught.value)


def test_an_expired_certificate_is_refused_from_that_second_on():
    ends = check_certificates([chain(SERVER), key(SERVER)]).expires
    contents = [chain(SERVER), key(SERVER)]
    check_certificates(contents, ends - timedelta(seconds=1))
    with pytest.raises(CredentialError, match=r"expired on .*; renew it"):
        check_certificates(contents, ends)
