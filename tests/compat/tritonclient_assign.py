"""Talk to a running server as any user of tritonclient would; a process of its own.

``python tritonclient_assign.py TARGET ROWS.npy ANSWERS.npz``. It imports nothing of ours: our generated
messages and tritonclient's describe the same protocol and cannot live in one process.
"""

import sys

import numpy as np
import tritonclient.grpc as triton


def main(target: str, rows_file: str, answers_file: str) -> None:
    client = triton.InferenceServerClient(target)
    rows = np.load(rows_file)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.get_server_metadata().name == "nvisa"

    metadata = client.get_model_metadata("toy")
    assert metadata.platform == "onnx_onnxv1"
    assert list(metadata.versions) == ["1"]
    (described,) = metadata.inputs
    assert [output.name for output in metadata.outputs] == ["probabilities", "cluster", "novelty"]
    assert tuple(described.shape) == (-1, *rows.shape[1:])

    tensor = triton.InferInput(described.name, list(rows.shape), described.datatype)
    tensor.set_data_from_numpy(rows)
    everything = client.infer("toy", [tensor], request_id="r-1", priority=1, client_timeout=60)
    assert everything.get_response().id == "r-1"
    wanted = [triton.InferRequestedOutput("cluster")]
    only_clusters = client.infer("toy", [tensor], model_version="1", outputs=wanted)
    assert [output.name for output in only_clusters.get_response().outputs] == ["cluster"]
    np.testing.assert_array_equal(only_clusters.as_numpy("cluster"), everything.as_numpy("cluster"))

    refusals = []
    for name, shape in (("nope", rows.shape), ("toy", (1, 3))):
        bad = triton.InferInput("x", list(shape), "UINT8")
        bad.set_data_from_numpy(np.zeros(shape, np.uint8))
        try:
            client.infer(name, [bad])
        except triton.InferenceServerException as error:
            refusals.append(f"{error.status()} {error.message()}")
    np.savez(
        answers_file,
        cluster=everything.as_numpy("cluster"),
        probabilities=everything.as_numpy("probabilities"),
        novelty=everything.as_numpy("novelty"),
        refusals=np.array(refusals),
    )
    client.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
