"""Run as a process of its own: tritonclient and this project register the same protobuf names.

Arguments: target, CA file, token.
"""

import sys

import numpy as np
import tritonclient.grpc as triton

target, ca, token = sys.argv[1:]
with triton.InferenceServerClient(target, ssl=True, root_certificates=ca) as client:
    for headers in ({"authorization": f"bearer {token}"}, {"x-api-key": token}):
        x = triton.InferInput("x", [2, 8, 8], "UINT8")
        x.set_data_from_numpy(np.zeros((2, 8, 8), np.uint8))
        assert client.infer("toy", [x], headers=headers).as_numpy("cluster").shape == (2,)
        print("answered")
    try:
        client.is_server_live()
    except triton.InferenceServerException as error:
        print(error)
