"""The loops of `mobula-bench objects`, run by Ray. Each row starts the nodes that it needs."""

from contextlib import contextmanager

import ray
from harness import main
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


main()
