"""The loops of `mobula-bench objects`, run by Ray. Each row starts the nodes that it needs."""

import time
from contextlib import contextmanager

import numpy as np
import ray
from harness import main, row
from ray.cluster_utils import Cluster


@contextmanager
def nodes(count, store_bytes=None, cpus=2):
    """So many raylets on this machine; the driver is attached to the first. Node `n` offers the resource `node-n`."""
    cluster = Cluster()
    options = {} if store_bytes is None else {"object_store_memory": store_bytes}
    try:
        for number in range(count):
            cluster.add_node(num_cpus=cpus, resources={f"node-{number}": 1}, include_dashboard=False, **options)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@ray.remote(num_cpus=0)
class Holder:
    """Makes objects on its node, and reads others'."""

    def make(self, size):
        return [ray.put(np.ones(size // 8, dtype=np.int64))]

    def read(self, refs):
        return sum(ray.get(ref).nbytes for ref in refs)


def transfer(size, times):
    with nodes(2, store_bytes=3 << 30):
        holder = Holder.options(resources={"node-1": 0.1}).remote()
        taken = []
        # The first opens connections.
        for _ in range(times + 1):
            (ref,) = ray.get(holder.make.remote(size))
            begun = time.perf_counter()
            array = ray.get(ref)
            taken.append(size / (time.perf_counter() - begun) / 1e9)
            assert array.nbytes == size
            del array, ref
        return sorted(taken[1:])[times // 2]


@row("transfer of 1 GiB")
def gibibyte(scale):
    return transfer(scale.bulk_bytes, 3)


@row("transfer of 64 MiB")
def megabytes(scale):
    return transfer(scale.bulk_bytes // 16, 5)


@row("transfer of 1 MiB")
def megabyte(scale):
    return transfer(scale.bulk_bytes // 1024, 20)


@row("broadcast of 1 GiB to 8 nodes")
def broadcast(scale):
    with nodes(9, store_bytes=scale.bulk_bytes * 3 // 2, cpus=1):
        readers = [Holder.options(resources={f"node-{at}": 0.1}).remote() for at in range(1, 9)]
        ray.get([reader.read.remote([]) for reader in readers])
        ref = ray.put(np.ones(scale.bulk_bytes // 8, dtype=np.int64))
        begun = time.perf_counter()
        lengths = ray.get([reader.read.remote([ref]) for reader in readers])
        assert all(length == scale.bulk_bytes for length in lengths)
        return time.perf_counter() - begun


@ray.remote
def split(source):
    at = np.arange(6250, dtype=np.uint64)
    return [at + np.uint64((source * 200 + target + 1) * 0x9E3779B97F4A7C15 % 2**64) for target in range(200)]


@ray.remote
def merge(*parts):
    return int(sum(int(part.sum(dtype=np.uint64)) for part in parts) % 2**64)


@row("shuffle of 2 GB")
def shuffle(scale):
    with nodes(1, store_bytes=512 << 20):
        begun = time.perf_counter()
        parts = [split.options(num_returns=200).remote(source) for source in range(200)]
        ray.wait([part for of_one in parts for part in of_one], num_returns=200 * 200, fetch_local=False)
        merged = [merge.remote(*(of_one[target] for of_one in parts)) for target in range(200)]
        del parts
        sums = ray.get(merged)
        taken = time.perf_counter() - begun
        for target, found in enumerate(sums):
            firsts = ((source * 200 + target + 1) * 0x9E3779B97F4A7C15 for source in range(200))
            assert found == sum(first * 6250 + 6250 * 6249 // 2 for first in firsts) % 2**64
        return taken


main()
