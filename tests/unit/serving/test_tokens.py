import hmac
from types import SimpleNamespace

import pytest

from serving import tokens
from serving.reloading import CredentialError
from serving.tokens import Role, parse_tokens

FIRST, SECOND = "0123456789abcdef", "ABCDEFGHabcdefgh:=="


def test_each_token_has_its_role():
    parsed = parse_tokens(f"# who\r\n\n  inference:{FIRST}  \nadmin:{SECOND}\n".encode())
    assert parsed.role(FIRST) is Role.INFERENCE
    assert parsed.role(SECOND) is Role.ADMIN
    for wrong in ("", FIRST[:-1], FIRST + "0", FIRST.upper(), f"inference:{FIRST}", "\udcff"):
        assert parsed.role(wrong) is None


@pytest.mark.parametrize("presented", [FIRST, SECOND, "nothing like it"])
def test_every_token_is_compared_in_constant_time_whatever_is_presented(monkeypatch, presented):
    parsed = parse_tokens(f"inference:{FIRST}\nadmin:{SECOND}\n".encode())
    compared = []

    def compare(a, b):
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(tokens, "hmac", SimpleNamespace(compare_digest=compare))
    parsed.role(presented)
    assert compared == [(32, 32)] * 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no token in it"),
        ("# nothing\n", "no token in it"),
        ("secret-secret-secret", "line 1 is not role:token"),
        (f"inference:{FIRST}\nroot:secret-secret-secret", "line 2 is not role:token"),
        ("inference:secret", "line 1: the token has 6 characters"),
        ("inference:" + "secret" * 200, "line 1: the token has 1200 characters"),
        ("inference:secret secret secret", "without spaces"),
        ("inference: secret-secret-secret", "without spaces"),
        ("inference:sécrét-sécrét-secret", "not ASCII"),
        ("inference:secret-secret-secret\nadmin:secret-secret-secret", "line 2: the token is there twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_line_and_without_its_content(content, says):
    with pytest.raises(CredentialError) as caught:
        parse_tokens(content.encode())
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None  # nor by way of an exception that holds the line


def test_no_token_shows_when_they_are_printed():
    parsed = parse_tokens(f"inference:{FIRST}\n".encode())
    assert FIRST not in repr(parsed)
    assert FIRST.encode() not in b"".join(digest for digest, _ in parsed.digests)
