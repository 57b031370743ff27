import pytest

from serving.labels import LabelsError, parse_labels


def test_a_file_with_every_label():
    labels = parse_labels(b"stable: 3\ncanary: {version: 4, share: 0.05}\nshadow: {version: 5}\n")
    assert labels.versions() == {"stable": 3, "canary": 4, "shadow": 5}
    assert labels.shares() == {"stable": 0.95, "canary": 0.05, "shadow": 0.0}


def test_stable_alone_answers_everything():
    labels = parse_labels(b"stable: 1")
    assert (labels.versions(), labels.shares()) == ({"stable": 1}, {"stable": 1.0})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "valid dictionary"),
        (b"- 3", "valid dictionary"),
        (b"stable: [", "not YAML"),
        (b"stable: \xff", "not YAML"),
        (b"[" * 20_000, "not YAML"),
        (b"a: &a [1]\nstable: *a", "valid integer"),
        (b"#" * 70_000, "more than 65536 bytes"),
        (b"canary: {version: 4, share: 0.05}", "stable: Field required"),
        (b"stable: 0", "stable: Input should be greater than or equal to 1"),
        (b"stable: '3'", "stable: Input should be a valid integer"),
        (b"stable: true", "stable: Input should be a valid integer"),
        (b"stable: 3\nlatest: 4", "latest: Extra inputs are not permitted"),
        (b"stable: 3\ncanary: 4", "canary: Input should be"),
        (b"stable: 3\ncanary: {version: 4}", "canary.share: Field required"),
        (b"stable: 3\ncanary: {version: 4, share: 0}", "canary.share: Input should be greater than 0"),
        (b"stable: 3\ncanary: {version: 4, share: 1}", "canary.share: Input should be less than 1"),
        (b"stable: 3\ncanary: {version: 4, share: .nan}", "canary.share: Input should be"),
        (b"stable: 3\ncanary: {version: 3, share: 0.5}", "canary and stable are both version 3"),
        (b"stable: 3\nshadow: {version: 3}", "shadow and stable are both version 3"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(content, says):
    with pytest.raises(LabelsError, match=says):
        parse_labels(content)
