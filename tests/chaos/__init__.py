"""Faults: what the callers of a real server see while something breaks, and that no answer is ever wrong.

`tests.chaos.load` calls without pause meanwhile, and compares every answer with that of the engine in this
process. ``make test-chaos`` runs these tests, ``make test`` does not. Where a fault has its test:

| fault | test | what the caller sees |
|---|---|---|
| SIGKILL of a worker under load | test_workers | UNAVAILABLE for calls in flight there; with retries nothing |
| SIGKILL of the supervisor | integration/test_workers | nothing for calls in flight, then no connection |
| SIGTERM under load | test_workers | an answer to every call that was accepted; CANCELLED for one that gRPC had read and the server not taken, with retries nothing; then no connection |
| a worker that is stuck | test_workers | no answer from it; /healthz names it |
| a hundred reloads | test_reloads | nothing, and memory is as before |
| a model that raises, wrong shape, NaN | test_models, unit/serving/test_failing | INTERNAL, for NaN INVALID_ARGUMENT; after --failed-runs UNAVAILABLE and not ready, until it works again or --failing-seconds are over; then exit status 1 |
| rows that make a model raise | unit/serving/test_failing | INTERNAL for who sent them, others nothing |
| a model that hangs | test_models, unit/serving/test_watchdog | UNAVAILABLE, once --run-timeout-seconds are over; exit status 1 |
| a model that is long in loading | test_models | UNAVAILABLE with pushback; with retries nothing, if they last |
| a bundle changed or deleted while serving | unit/serving/test_model_control | nothing |
| a broken bundle at start | integration/test_server | the server does not start, and says why |
| the batcher's task killed | unit/serving/test_lifecycle, test_batcher | UNAVAILABLE; exit status 1 |
| clients that vanish | integration/test_server | others see nothing |
| clients that send slowly, or stop half-way | test_clients | an answer once all is sent; others nothing. If they answer no ping, gRPC lets them hold up a graceful stop for 20 s |
| a stream whose client does not read | test_clients | it is held back, and answered once it reads; others nothing |
| a thousand connections | test_clients | nothing |
| no file descriptors left | test_clients | nothing for who is connected; others wait until there are some |
| certificates and tokens replaced | integration/test_security | nothing |
| a certificate that expires while serving | test_certificates | nothing for who is connected; who comes UNAVAILABLE, "the server's certificate has expired", until it is renewed |
| a full disk under the log | test_machine | nothing |
| a full disk under the file with the ports | test_machine | the server does not start, and says why |
| a full disk under the offline job | test_machine | the job ends with a status that asks for a retry, and goes on; a server that it asks, and its other callers, notice nothing |
| a full disk under labels.yaml | unit/serving/test_models_cli | nvisa-models says so, the labels stay |
| a clock that jumps | test_machine | nothing |

Beside the port file and its log a server writes nothing: workers send their counts over sockets.
"""
