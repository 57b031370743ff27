import io
import json
import logging

import pytest

from serving.logs import set_up_logs


@pytest.fixture(autouse=True)
def logging_as_it_was():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def logged(style, level="info", stream=None, **extra):
    stream = stream or io.StringIO()
    set_up_logs(style, level, stream)
    log = logging.getLogger("serving.test")
    log.debug("too fine")
    try:
        raise ValueError("cause")
    except ValueError:
        log.error("it %s", "broke", exc_info=True, extra=extra)
    return stream.getvalue()


def test_json_is_one_object_per_line_with_the_fields_beside_the_message():
    (line,) = logged("json", request_id="r-1", rows=3).splitlines()
    entry = json.loads(line)
    assert entry["message"] == "it broke"
    assert (entry["level"], entry["logger"]) == ("error", "serving.test")
    assert (entry["request_id"], entry["rows"]) == ("r-1", 3)
    assert "ValueError: cause" in entry["exception"]
    assert entry["time"].endswith("+00:00")


def test_a_line_break_in_what_a_caller_sent_does_not_make_a_second_entry():
    assert len(logged("json", request_id='a"\n{"level": "forged"}').splitlines()) == 1


def test_text_is_for_people():
    text = logged("text", request_id="r-1")
    assert "error   it broke  request_id=r-1" in text
    assert "ValueError: cause" in text


def test_auto_is_json_where_there_is_no_terminal_and_text_where_there_is():
    assert logged("auto").startswith("{")
    assert not logged("auto", stream=Terminal()).startswith("{")


def test_the_level_is_kept():
    assert "too fine" not in logged("json")
    assert "too fine" in logged("json", level="debug")
