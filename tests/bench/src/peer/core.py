"""The loops of `mobula-bench core`, run by Ray."""

import numpy as np
import ray
from harness import main, rate, row, say
from ray.util.placement_group import placement_group, remove_placement_group

CALLS = 5000
TASKS = 10_000
CLIENTS = 4
# Large batches take Ray longer than a window, so shorter ones, by this factor, warm it up.
WARM_SHARE = 20
GIGABYTE = 1e9


@ray.remote
def small_value():
    return b"ok"


@ray.remote(num_cpus=0)
class Echo:
    def small_value(self):
        return b"ok"

    def small_value_arg(self, x):
        return b"ok"

    def small_value_batch(self, n):
        ray.get([small_value.remote() for _ in range(n)])

    def memory(self):
        with open("/proc/self/smaps_rollup") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
        return (int(fields["Rss"].split()[0]) - int(fields["Pss_Shmem"].split()[0])) * 1024


@ray.remote(num_cpus=0)
class AsyncEcho:
    async def small_value(self):
        return b"ok"

    async def small_value_with_arg(self, x):
        return b"ok"


@ray.remote(num_cpus=0)
class Client:
    def __init__(self, servers):
        self.servers = servers

    def small_value_batch(self, n):
        ray.get([server.small_value.remote() for server in self.servers for _ in range(n)])

    def small_value_batch_arg(self, n):
        x = ray.put(0)
        ray.get([server.small_value_arg.remote(x) for server in self.servers for _ in range(n)])


@ray.remote
def work(actors, calls):
    ray.get([actors[at % len(actors)].small_value.remote() for at in range(calls)])


@ray.remote
def put_small():
    for _ in range(100):
        ray.put(0)


LARGE = []


@ray.remote
def put_large():
    if not LARGE:
        LARGE.append(np.ones(10 * 1024 * 1024, dtype=np.int64))
    for _ in range(10):
        ray.put(LARGE[0])


@ray.remote
def object_with_refs():
    return [ray.put(1) for _ in range(10_000)]


def started(actors, method="small_value"):
    ray.get([getattr(actor, method).remote() for actor in actors])
    return actors


SERVERS = 1

@row("single client get calls (Plasma Store)")
def _(scale):
    value = ray.put(0)
    return rate(scale.window, 1, lambda: ray.get(value))


@row("single client put calls (Plasma Store)")
def _(scale):
    return rate(scale.window, 1, lambda: ray.put(0))


@row("multi client put calls (Plasma Store)")
def _(scale):
    return rate(scale.window, 1000, lambda: ray.get([put_small.remote() for _ in range(10)]))


@row("single client put gigabytes")
def _(scale):
    ones = np.ones(100 * 1024 * 1024, dtype=np.int64)
    return rate(scale.window, ones.nbytes / GIGABYTE, lambda: ray.put(ones))


@row("single client tasks and get batch")
def _(scale):
    return rate(scale.window, 1, lambda: ray.get([small_value.remote() for _ in range(1000)]))


@row("multi client put gigabytes")
def _(scale):
    bytes_each = 10 * 10 * 1024 * 1024 * 8
    return rate(scale.window, 10 * bytes_each / GIGABYTE, lambda: ray.get([put_large.remote() for _ in range(10)]))


@row("single client get object containing 10k refs")
def _(scale):
    made = object_with_refs.remote()
    return rate(scale.window, 1, lambda: ray.get(made))


@row("single client wait 1k refs")
def _(scale):
    def wait():
        waiting = [small_value.remote() for _ in range(1000)]
        while waiting:
            _, waiting = ray.wait(waiting, fetch_local=False)

    return rate(scale.window, 1, wait)


@row("single client tasks sync")
def _(scale):
    return rate(scale.window, 1, lambda: ray.get(small_value.remote()))


@row("single client tasks async")
def _(scale):
    return rate(scale.window, 1000, lambda: ray.get([small_value.remote() for _ in range(1000)]))


@row("multi client tasks async")
def _(scale):
    actors = started([Echo.remote() for _ in range(CLIENTS)])

    def batch(tasks):
        ray.get([actor.small_value_batch.remote(tasks) for actor in actors])

    return rate(scale.window, TASKS * CLIENTS, lambda: batch(TASKS), lambda: batch(TASKS // WARM_SHARE))


def one_to_one(scale, actor, each):
    started([actor])
    calls = (lambda: ray.get(actor.small_value.remote())) if each == 1 else (
        lambda: ray.get([actor.small_value.remote() for _ in range(each)])
    )
    return rate(scale.window, each, calls)


@row("1:1 actor calls sync")
def _(scale):
    return one_to_one(scale, Echo.remote(), 1)


@row("1:1 actor calls async")
def _(scale):
    return one_to_one(scale, Echo.remote(), 1000)


@row("1:1 actor calls concurrent")
def _(scale):
    return one_to_one(scale, Echo.options(max_concurrency=16).remote(), 1000)


def one_to_many(scale, kind):
    servers = started([kind.remote() for _ in range(SERVERS)])
    client = Client.remote(servers)

    def batch(calls):
        ray.get(client.small_value_batch.remote(calls))

    return rate(scale.window, CALLS * SERVERS, lambda: batch(CALLS), lambda: batch(CALLS // WARM_SHARE))


def many_to_many(scale, kind):
    actors = started([kind.remote() for _ in range(SERVERS)])

    def batch(calls):
        ray.get([work.remote(actors, calls) for _ in range(CLIENTS)])

    return rate(scale.window, CLIENTS * CALLS, lambda: batch(CALLS), lambda: batch(CALLS // WARM_SHARE))


@row("1:n actor calls async")
def _(scale):
    return one_to_many(scale, Echo)


@row("n:n actor calls async")
def _(scale):
    return many_to_many(scale, Echo)


@row("n:n actor calls with arg async")
def _(scale):
    servers = started([Echo.remote() for _ in range(SERVERS)])
    clients = [Client.remote([server]) for server in servers]
    return rate(
        scale.window,
        1000 * len(clients),
        lambda: ray.get([client.small_value_batch_arg.remote(1000) for client in clients]),
    )


@row("1:1 async-actor calls sync")
def _(scale):
    return one_to_one(scale, AsyncEcho.remote(), 1)


@row("1:1 async-actor calls async")
def _(scale):
    return one_to_one(scale, AsyncEcho.remote(), 1000)


@row("1:1 async-actor calls with args async")
def _(scale):
    actor = started([AsyncEcho.remote()])[0]
    return rate(
        scale.window, 1000, lambda: ray.get([actor.small_value_with_arg.remote(at) for at in range(1000)])
    )


@row("1:n async-actor calls async")
def _(scale):
    return one_to_many(scale, AsyncEcho)


@row("n:n async-actor calls async")
def _(scale):
    return many_to_many(scale, AsyncEcho)


@row("placement group create/removal")
def _(scale):
    def create_and_remove():
        groups = [placement_group(bundles=[{"CPU": 0.001}]) for _ in range(100)]
        for group in groups:
            group.wait(timeout_seconds=30)
        for group in groups:
            remove_placement_group(group)

    return rate(scale.window, 100, create_and_remove)


@row("actor creation")
def _(scale):
    def create():
        started([Echo.remote() for _ in range(4)])

    return rate(scale.window, 4, create, lambda: None)


@row("memory of an idle actor")
def _(scale):
    return ray.get(Echo.remote().memory.remote()) / 1e3


def start():
    # Without the dashboard, which would use the processor beside what is measured.
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.get(small_value.remote())
    say(row="first", value=0)
    global SERVERS
    SERVERS = max(1, int(ray.cluster_resources()["CPU"]) // 2)


main(start)
