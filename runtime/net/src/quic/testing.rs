//! Two endpoints of one cluster, for the tests of this crate.

use std::{future::Future, net::SocketAddr, time::Duration};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::identity::{Authority, Role};

pub(crate) const ANY: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

pub(crate) struct Cluster {
    pub(crate) authority: Authority,
    _folder: TempDir,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { authority: Authority::create(folder.path(), "test").unwrap(), _folder: folder }
    }

    pub(crate) fn endpoint(&self, role: Role, name: &str) -> (Endpoint, SocketAddr) {
        let options = Options {
            accept_join: role == Role::Head,
            connect_timeout: Duration::from_secs(10),
            ..Options::default()
        };
        let identity = self.authority.identity(role, name).unwrap();
        let endpoint = Endpoint::bind(ANY.into(), identity, options).unwrap();
        let addr = endpoint.local_addr().unwrap();
        (endpoint, addr)
    }
}

/// A head and an agent, connected.
pub(crate) struct Pair {
    pub(crate) dialled: Connection,
    pub(crate) accepted: Connection,
    pub(crate) _ends: (Endpoint, Endpoint),
    pub(crate) _cluster: Cluster,
}

impl Pair {
    pub(crate) async fn new() -> Self {
        let cluster = Cluster::new();
        let (head, addr) = cluster.endpoint(Role::Head, "head");
        let (agent, _) = cluster.endpoint(Role::Agent, "node-1");
        let (dialled, accepted) =
            Self::soon(async { tokio::join!(agent.connect(addr, Role::Head), head.accept()) }).await;
        let Some(Incoming::Peer(accepted)) = accepted else { panic!("{accepted:?}") };
        Self { dialled: dialled.unwrap(), accepted, _ends: (agent, head), _cluster: cluster }
    }

    /// Bounds a wait of a test.
    pub(crate) async fn soon<T>(wait: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(60), wait).await.expect("a test waited too long")
    }
}
