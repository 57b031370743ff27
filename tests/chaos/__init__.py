"""Faults: what the callers of a real server see while something breaks, and that no answer is ever wrong.

`tests.chaos.load` calls without pause meanwhile, and compares every answer with that of the engine in this
process. ``make test-chaos`` runs these tests, ``make test`` does not; ``NVISA_CHAOS_SECONDS`` says for how long
to go on calling under each fault. Where a fault has its test:

| fault | test | what the caller sees |
|---|---|---|
| SIGKILL of a worker under load | test_workers | UNAVAILABLE for calls in flight there; with retries nothing |
| SIGKILL of the supervisor | integration/test_workers | nothing for calls in flight, then no connection |
| SIGTERM under load | test_workers | an answer to every call that was accepted, then no connection |
| a worker that is stuck | test_workers | no answer from it; /healthz names it |
| a model that raises, wrong shape, NaN | test_models, unit/serving/test_batcher | INTERNAL; INVALID_ARGUMENT |
| a model that hangs | test_models, unit/serving/test_watchdog | UNAVAILABLE, once --run-timeout-seconds are over |
| a bundle replaced, truncated, deleted while serving | test_bundles | nothing |
| the same while loading | test_bundles, integration/test_server | the server does not start, and says why |
| the same when a worker is started again | test_bundles | nothing: the others answer |
| disk full | test_surroundings, unit/serving/test_bundle | nothing; the port file is a start error |
| the batcher's task killed | unit/serving/test_lifecycle, test_batcher | UNAVAILABLE; exit status 1 |
| clients that vanish, also in a stream | test_clients, integration/test_server | others see nothing |
| clients that send slowly | test_clients | others see nothing |
| 1,000 connections | test_clients | nothing |
| a clock that jumps | test_surroundings | nothing: deadlines do not go by it |
| a certificate that expires while serving | test_surroundings | nothing on old connections; none are new |
| certificates and tokens replaced | integration/test_security | nothing |
"""
