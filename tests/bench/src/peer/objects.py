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


main()
