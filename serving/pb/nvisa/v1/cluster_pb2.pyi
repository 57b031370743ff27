from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_FLOAT32: DataType
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_FAILED: ModelState

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data", "values", "columns")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    values: _containers.RepeatedScalarFieldContainer[float]
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., values: _Optional[_Iterable[float]] = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class AssignRequest(_message.Message):
    __slots__ = ("model_name", "model_version", "request_id", "input", "want_probabilities", "want_novelty", "model_label")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    WANT_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    WANT_NOVELTY_FIELD_NUMBER: _ClassVar[int]
    MODEL_LABEL_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    request_id: str
    input: Tensor
    want_probabilities: bool
    want_novelty: bool
    model_label: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., request_id: _Optional[str] = ..., input: _Optional[_Union[Tensor, _Mapping]] = ..., want_probabilities: _Optional[bool] = ..., want_novelty: _Optional[bool] = ..., model_label: _Optional[str] = ...) -> None: ...

class AssignResponse(_message.Message):
    __slots__ = ("request_id", "model_name", "model_version", "clusters", "confidences", "probabilities", "clusters_data", "confidences_data", "probabilities_data", "n_clusters", "timings", "novelty", "novelty_data")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_DATA_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCES_DATA_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_DATA_FIELD_NUMBER: _ClassVar[int]
    N_CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    NOVELTY_FIELD_NUMBER: _ClassVar[int]
    NOVELTY_DATA_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model_name: str
    model_version: int
    clusters: _containers.RepeatedScalarFieldContainer[int]
    confidences: _containers.RepeatedScalarFieldContainer[float]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    clusters_data: bytes
    confidences_data: bytes
    probabilities_data: bytes
    n_clusters: int
    timings: Timings
    novelty: _containers.RepeatedScalarFieldContainer[float]
    novelty_data: bytes
    def __init__(self, request_id: _Optional[str] = ..., model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., clusters: _Optional[_Iterable[int]] = ..., confidences: _Optional[_Iterable[float]] = ..., probabilities: _Optional[_Iterable[float]] = ..., clusters_data: _Optional[bytes] = ..., confidences_data: _Optional[bytes] = ..., probabilities_data: _Optional[bytes] = ..., n_clusters: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., novelty: _Optional[_Iterable[float]] = ..., novelty_data: _Optional[bytes] = ...) -> None: ...

class AssignStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: AssignRequest
    def __init__(self, request: _Optional[_Union[AssignRequest, _Mapping]] = ...) -> None: ...

class AssignStreamResponse(_message.Message):
    __slots__ = ("index", "request_id", "response", "error")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    index: int
    request_id: str
    response: AssignResponse
    error: StreamError
    def __init__(self, index: _Optional[int] = ..., request_id: _Optional[str] = ..., response: _Optional[_Union[AssignResponse, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_ns", "inference_ns", "total_ns")
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    queue_ns: int
    inference_ns: int
    total_ns: int
    def __init__(self, queue_ns: _Optional[int] = ..., inference_ns: _Optional[int] = ..., total_ns: _Optional[int] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model_name", "model_version", "model_label", "request_id")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_LABEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    model_label: str
    request_id: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., model_label: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model", "limits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    limits: Limits
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "limits")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    limits: Limits
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_queue_rows", "max_batch_rows")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_queue_rows: int
    max_batch_rows: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_queue_rows: _Optional[int] = ..., max_batch_rows: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "is_default", "state", "state_reason", "device", "input", "n_clusters", "clusters", "parity", "training", "graph_sha256", "opset", "package_version", "commit", "created", "novelty", "labels")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_REASON_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    N_CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    GRAPH_SHA256_FIELD_NUMBER: _ClassVar[int]
    OPSET_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    NOVELTY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    is_default: bool
    state: ModelState
    state_reason: str
    device: str
    input: InputSpec
    n_clusters: int
    clusters: _containers.RepeatedCompositeFieldContainer[Cluster]
    parity: Parity
    training: Training
    graph_sha256: str
    opset: int
    package_version: str
    commit: str
    created: str
    novelty: Novelty
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., is_default: _Optional[bool] = ..., state: _Optional[_Union[ModelState, str]] = ..., state_reason: _Optional[str] = ..., device: _Optional[str] = ..., input: _Optional[_Union[InputSpec, _Mapping]] = ..., n_clusters: _Optional[int] = ..., clusters: _Optional[_Iterable[_Union[Cluster, _Mapping]]] = ..., parity: _Optional[_Union[Parity, _Mapping]] = ..., training: _Optional[_Union[Training, _Mapping]] = ..., graph_sha256: _Optional[str] = ..., opset: _Optional[int] = ..., package_version: _Optional[str] = ..., commit: _Optional[str] = ..., created: _Optional[str] = ..., novelty: _Optional[_Union[Novelty, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class Novelty(_message.Message):
    __slots__ = ("score", "rows", "cost_ratio", "max_abs_difference")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COST_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    score: str
    rows: int
    cost_ratio: float
    max_abs_difference: float
    def __init__(self, score: _Optional[str] = ..., rows: _Optional[int] = ..., cost_ratio: _Optional[float] = ..., max_abs_difference: _Optional[float] = ...) -> None: ...

class InputSpec(_message.Message):
    __slots__ = ("dtype", "shape", "meaning", "columns")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    meaning: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., meaning: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ...) -> None: ...

class Cluster(_message.Message):
    __slots__ = ("id", "name", "share", "mean_confidence")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    MEAN_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    id: int
    name: str
    share: float
    mean_confidence: float
    def __init__(self, id: _Optional[int] = ..., name: _Optional[str] = ..., share: _Optional[float] = ..., mean_confidence: _Optional[float] = ...) -> None: ...

class Parity(_message.Message):
    __slots__ = ("max_abs_difference", "equal_argmax_share", "rows")
    MAX_ABS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    EQUAL_ARGMAX_SHARE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    max_abs_difference: float
    equal_argmax_share: float
    rows: int
    def __init__(self, max_abs_difference: _Optional[float] = ..., equal_argmax_share: _Optional[float] = ..., rows: _Optional[int] = ...) -> None: ...

class Training(_message.Message):
    __slots__ = ("data", "data_fingerprint", "rows", "config_hash", "objective", "epochs", "seed", "scores")
    class ScoresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    data: str
    data_fingerprint: str
    rows: int
    config_hash: str
    objective: str
    epochs: int
    seed: int
    scores: _containers.ScalarMap[str, float]
    def __init__(self, data: _Optional[str] = ..., data_fingerprint: _Optional[str] = ..., rows: _Optional[int] = ..., config_hash: _Optional[str] = ..., objective: _Optional[str] = ..., epochs: _Optional[int] = ..., seed: _Optional[int] = ..., scores: _Optional[_Mapping[str, float]] = ...) -> None: ...
