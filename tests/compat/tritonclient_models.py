"""Load and unload models as any user of tritonclient would; a process of its own.

``python tritonclient_models.py TARGET TOKEN CA BUNDLE REPOSITORY``: BUNDLE, of model ``toy`` version 2, is moved
into REPOSITORY meanwhile. Prints a line for each thing that was seen.
"""

import json
import os
import sys

import numpy as np
import tritonclient.grpc as triton

target, token, ca, bundle, repository = sys.argv[1:]
headers = {"authorization": f"Bearer {token}"}


def index(client: triton.InferenceServerClient) -> None:
    reply = client.get_model_repository_index(headers=headers)
    print("index", [(model.name, model.version, model.state) for model in reply.models])
    as_json = client.get_model_repository_index(headers=headers, as_json=True)
    assert json.dumps(as_json)


def answer(client: triton.InferenceServerClient) -> None:
    x = triton.InferInput("x", [2, 8, 8], "UINT8")
    x.set_data_from_numpy(np.zeros((2, 8, 8), np.uint8))
    print("answered by", client.infer("toy", [x], headers=headers).get_response().model_version)


with triton.InferenceServerClient(target, ssl=True, root_certificates=ca) as client:
    assert "model_repository" in client.get_server_metadata(headers=headers).extensions
    index(client)
    answer(client)
    os.rename(bundle, os.path.join(repository, "toy", "2"))
    index(client)
    try:
        client.load_model("toy", headers=headers)
    except triton.InferenceServerException as error:
        print("refused", error.status())
        sys.exit()
    index(client)
    answer(client)
    client.unload_model("toy", headers=headers)
    index(client)
    client.load_model("toy", headers=headers)
    answer(client)
    for wrong in (
        lambda: client.load_model("toy", headers=headers, config="{}"),
        lambda: client.load_model("nope", headers=headers),
        lambda: client.unload_model("nope", headers=headers),
    ):
        try:
            wrong()
        except triton.InferenceServerException as error:
            print("refused", error.status())
