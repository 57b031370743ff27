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
| a model that raises, wrong shape, NaN | unit/serving/test_batcher | INTERNAL; INVALID_ARGUMENT |
| a model that hangs | unit/serving/test_watchdog | UNAVAILABLE, once --run-timeout-seconds are over |
| a bundle changed or deleted while serving | unit/serving/test_model_control | nothing |
| a broken bundle at start | integration/test_server | the server does not start, and says why |
| the batcher's task killed | unit/serving/test_lifecycle, test_batcher | UNAVAILABLE; exit status 1 |
| clients that vanish | integration/test_server | others see nothing |
| certificates and tokens replaced | integration/test_security | nothing |

Without a test so far: a full disk, slow clients, a thousand connections, a clock that jumps, a certificate that
expires while serving.
"""
