import logging

import grpc
import pytest

from serving.engine import EngineError
from serving.errors import (
    STATUS_CODES,
    DeadlinePassed,
    Forbidden,
    InvalidInput,
    NotReady,
    Overloaded,
    ServingError,
    Unauthenticated,
    UnknownModel,
    status_of,
)

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidInput("row 3 has NaN"), CODE.INVALID_ARGUMENT),
        (UnknownModel("no model 'a'"), CODE.NOT_FOUND),
        (NotReady("loading"), CODE.UNAVAILABLE),
        (Overloaded("full", retry_after=0.25), CODE.RESOURCE_EXHAUSTED),
        (Unauthenticated("no token"), CODE.UNAUTHENTICATED),
        (Forbidden("not with this token"), CODE.PERMISSION_DENIED),
        (DeadlinePassed("too late"), CODE.DEADLINE_EXCEEDED),
    ],
)
def test_each_error_has_the_code_of_the_design_and_shows_its_message(error, code):
    status = status_of(error, "service/Method")
    assert status.code is code
    assert status.message == str(error)


def test_every_serving_error_is_in_the_table():
    assert set(STATUS_CODES) == set(ServingError.__subclasses__())


@pytest.mark.parametrize(("seconds", "milliseconds"), [(0.25, "250"), (0.0, "1")])
def test_overload_tells_the_client_when_to_come_back(seconds, milliseconds):
    trailers = status_of(Overloaded("full", retry_after=seconds), "service/Method").trailers
    assert trailers == (("grpc-retry-pushback-ms", milliseconds),)


@pytest.mark.parametrize("error", [EngineError("secret path /models"), ValueError("secret")])
def test_the_unforeseen_is_internal_and_its_details_stay_in_the_log(error, caplog):
    with caplog.at_level(logging.ERROR):
        status = status_of(error, "service/Method", "request-7")
    assert status.code is CODE.INTERNAL
    assert "secret" not in status.message
    (record,) = caplog.records
    assert record.error_id in status.message
    assert record.request_id == "request-7"
    assert record.exc_info[1] is error
