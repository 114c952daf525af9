//! Files of spilled objects in an object store.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    future::Future,
    io,
    path::{Path as FilePath, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt};
use mobula_store::{
    Error as StoreError,
    spill::{Sink, Source, Target},
};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, path::Path};
use parking_lot::Mutex;
use tokio::{runtime::Runtime, task::JoinHandle};
use tracing::{debug, warn};

use crate::{Error, Limits, place};

/// A file that is larger goes up in parts of so many bytes, or larger ones where it would have more than [`PARTS_MAX`].
pub const PART_BYTES: usize = 8 * 1024 * 1024;
/// Most parts of a file; the bound of S3.
pub const PARTS_MAX: u64 = 10_000;
/// Parts of one file that are on their way at once. Each takes its size in memory.
pub const UPLOADS_MAX: usize = 4;
/// Threads for requests.
const THREADS: usize = 1;
/// Longest that removing what is left may take at the end.
const END_MAX: Duration = Duration::from_secs(5);
/// Keeps the name that this node has in the store.
const NAME_FILE: &str = "spill-name";

/// A place of its own for the files of one process. What lies in it goes with it, when this is dropped: that blocks for
/// up to 5 s.
#[derive(Debug)]
pub struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    /// The folder that is all its own, if it is one.
    folder: Option<PathBuf>,
    limits: Limits,
    /// Files that were begun and not removed.
    files: Mutex<BTreeSet<u64>>,
    /// Always there until the end.
    runtime: Option<Runtime>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("url", &self.url).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Bucket {
    /// Opens the place that `url` names, for the node with this `home`, in which it keeps a name of its own: what an
    /// earlier process of that node left is removed. Writes a file and removes it, so that what is wrong shows now.
    /// Blocks, for no longer than three operations may take.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(url: &str, home: &FilePath) -> Result<Self, Error> {
        let variables = std::env::vars_os();
        let text =
            variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::open_with(url, home, text, Limits::default())
    }

    /// [`Self::open`] with these variables instead of the environment's, and these limits.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        url: &str,
        home: &FilePath,
        variables: impl IntoIterator<Item = (String, String)>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let system = |what| move |source| Error::System { what, source };
        let own = own_name(home).map_err(system("keeping a name for spilled objects in the home"))?;
        let place = place::open(url, &own, variables, limits)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("mobula-spill")
            .enable_all()
            .build()
            .map_err(system("starting a thread for spilled objects"))?;
        let inner = Arc::new(Inner {
            store: place.store,
            prefix: place.prefix,
            url: url.to_owned(),
            folder: place.folder,
            limits,
            files: Mutex::default(),
            runtime: Some(runtime),
        });
        let unusable = |error: StoreError| Error::Unusable {
            detail: match error {
                StoreError::Target { what, target, detail } => format!("{what} {target}: {detail}"),
                other => other.to_string(),
            },
            cure: place.cure,
        };
        let store = Arc::clone(&inner.store);
        let prefix = inner.prefix.clone();
        let left = async move {
            let found = store.list(Some(&prefix)).map_ok(|file| file.location).boxed();
            store.delete_stream(found).map(gone).try_for_each(|()| async { Ok(()) }).await
        };
        inner.wait("removing what was left in", None, left).map_err(unusable)?;
        let (store, probe) = (Arc::clone(&inner.store), inner.prefix.clone().join("probe"));
        let probing = async move {
            store.put(&probe, b"mobula".as_slice().into()).await?;
            gone(store.delete(&probe).await)
        };
        inner.wait("writing to", None, probing).map_err(unusable)?;
        Ok(Self { inner })
    }
}

/// The name under which a node's files lie, the same after each start.
fn own_name(home: &FilePath) -> io::Result<String> {
    use std::os::unix::fs::DirBuilderExt;
    let path = home.join(NAME_FILE);
    let named = |text: &str| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = match std::fs::read_to_string(&path) {
        Ok(text) if named(text.trim()) => text.trim().to_owned(),
        // Half written, or not at all.
        Ok(_) => fresh(&path)?,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => fresh(&path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home)?;
            fresh(&path)?
        }
        Err(error) => return Err(error),
    };
    Ok(format!("mobula-spill-{name}"))
}

fn fresh(path: &FilePath) -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    let name = hex::encode(bytes);
    std::fs::write(path, &name)?;
    Ok(name)
}

/// What is not there is as good as removed.
fn gone<T>(result: object_store::Result<T>) -> object_store::Result<()> {
    match result {
        Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// An operation that was begun. Dropping it ends it.
struct Begun<T> {
    what: &'static str,
    file: Option<u64>,
    task: JoinHandle<()>,
    result: Receiver<object_store::Result<T>>,
}

impl<T> Drop for Begun<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    fn path(&self, file: u64) -> Path {
        self.prefix.clone().join(format!("{file}.spill"))
    }

    fn failed(&self, what: &'static str, file: Option<u64>, detail: String) -> StoreError {
        StoreError::Target { what, target: self.place(file), detail }
    }

    fn missing(&self, what: &'static str, file: Option<u64>, detail: String) -> StoreError {
        StoreError::Missing { what, target: self.place(file), detail }
    }

    fn place(&self, file: Option<u64>) -> String {
        match file {
            Some(file) => format!("file {file} at {}", self.url),
            None => self.url.clone(),
        }
    }

    fn begin<T: Send + 'static>(
        &self,
        what: &'static str,
        file: Option<u64>,
        operation: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<Begun<T>, StoreError> {
        let ended = || self.failed(what, file, "it is closed".to_owned());
        let runtime = self.runtime.as_ref().ok_or_else(ended)?;
        let (sender, result) = sync_channel(1);
        let task = runtime.spawn(async move {
            // Nobody listens to what was given up.
            let _late = sender.send(operation.await);
        });
        Ok(Begun { what, file, task, result })
    }

    fn end<T>(&self, begun: Begun<T>) -> Result<T, StoreError> {
        let limit = self.limits.operation;
        match begun.result.recv_timeout(limit) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error @ object_store::Error::NotFound { .. })) => {
                Err(self.missing(begun.what, begun.file, error.to_string()))
            }
            Ok(Err(error)) => Err(self.failed(begun.what, begun.file, error.to_string())),
            Err(_) => Err(self.failed(begun.what, begun.file, format!("it did not answer within {limit:?}"))),
        }
    }

    fn wait<T: Send + 'static>(
        &self,
        what: &'static str,
        file: Option<u64>,
        operation: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.end(self.begin(what, file, operation)?)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let files = std::mem::take(self.files.get_mut());
        let Some(runtime) = self.runtime.take() else { return };
        if !files.is_empty() {
            let store = Arc::clone(&self.store);
            let paths: Vec<_> = files.into_iter().map(|file| Ok(self.path(file))).collect();
            let (sender, result) = sync_channel(1);
            runtime.spawn(async move {
                let paths = futures_util::stream::iter(paths).boxed();
                let removed = store.delete_stream(paths).map(gone).try_for_each(|()| async { Ok(()) }).await;
                let _late = sender.send(removed);
            });
            match result.recv_timeout(END_MAX) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(url = self.url, %error, "files of spilled objects stay until the next start")
                }
                Err(_) => warn!(url = self.url, "files of spilled objects stay until the next start"),
            }
        }
        runtime.shutdown_background();
        if let Some(folder) = &self.folder {
            // Whoever starts next in its place tries again.
            let _left = std::fs::remove_dir_all(folder);
        }
    }
}

impl Target for Bucket {
    fn create(&self, file: u64, bytes: u64) -> Result<Box<dyn Sink>, StoreError> {
        let inner = Arc::clone(&self.inner);
        inner.files.lock().insert(file);
        let part_bytes = bytes.div_ceil(PARTS_MAX).next_multiple_of(PART_BYTES as u64).max(PART_BYTES as u64);
        let part_bytes = usize::try_from(part_bytes).unwrap_or(usize::MAX);
        let upload = if bytes <= part_bytes as u64 {
            None
        } else {
            let (store, path) = (Arc::clone(&inner.store), inner.path(file));
            Some(inner.wait("beginning", Some(file), async move { store.put_multipart(&path).await })?)
        };
        Ok(Box::new(Upload { inner, file, part_bytes, part: Vec::new(), upload, flying: VecDeque::new() }))
    }

    fn open(&self, file: u64) -> Result<Box<dyn Source>, StoreError> {
        Ok(Box::new(Download { inner: Arc::clone(&self.inner), file }))
    }

    fn delete(&self, file: u64) -> Result<(), StoreError> {
        let (store, path) = (Arc::clone(&self.inner.store), self.inner.path(file));
        self.inner.wait("removing", Some(file), async move { gone(store.delete(&path).await) })?;
        self.inner.files.lock().remove(&file);
        Ok(())
    }
}

struct Upload {
    inner: Arc<Inner>,
    file: u64,
    part_bytes: usize,
    /// What is not on its way yet.
    part: Vec<u8>,
    /// Where the file goes up in parts, until it is complete.
    upload: Option<Box<dyn MultipartUpload>>,
    flying: VecDeque<Begun<()>>,
}

impl Upload {
    /// Sends what is gathered as one part; waits where enough are on their way.
    fn flush(&mut self) -> Result<(), StoreError> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let part = std::mem::take(&mut self.part);
        if self.flying.len() >= UPLOADS_MAX
            && let Some(first) = self.flying.pop_front()
        {
            self.inner.end(first)?;
        }
        let sending = upload.put_part(part.into());
        self.flying.push_back(self.inner.begin("writing", Some(self.file), sending)?);
        Ok(())
    }
}

impl Sink for Upload {
    fn write(&mut self, mut chunk: &[u8]) -> Result<(), StoreError> {
        while !chunk.is_empty() {
            if self.part.len() >= self.part_bytes {
                self.flush()?;
            }
            let (now, rest) = chunk.split_at(chunk.len().min(self.part_bytes - self.part.len()));
            self.part.extend_from_slice(now);
            chunk = rest;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        if self.upload.is_some() {
            self.flush()?;
            while let Some(first) = self.flying.pop_front() {
                self.inner.end(first)?;
            }
            if let Some(mut upload) = self.upload.take() {
                let completing = async move { upload.complete().await };
                self.inner.wait("completing", Some(self.file), completing)?;
            }
            return Ok(());
        }
        let (store, path) = (Arc::clone(&self.inner.store), self.inner.path(self.file));
        let whole = std::mem::take(&mut self.part);
        let writing = async move { store.put(&path, whole.into()).await };
        self.inner.wait("writing", Some(self.file), writing).map(|_| ())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Parts of a file that will not be complete cost money until they are removed.
        let Some(mut upload) = self.upload.take() else { return };
        self.flying.clear();
        let limit = self.inner.limits.operation;
        let aborting = async move {
            match tokio::time::timeout(limit, upload.abort()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "parts of a file stay until its bucket removes them"),
                Err(_) => debug!("parts of a file stay until their bucket removes them"),
            }
        };
        if let Some(runtime) = &self.inner.runtime {
            drop(runtime.spawn(aborting));
        }
    }
}

struct Download {
    inner: Arc<Inner>,
    file: u64,
}

impl Source for Download {
    fn read_at(&mut self, offset: u64, chunk: &mut [u8]) -> Result<(), StoreError> {
        let (store, path) = (Arc::clone(&self.inner.store), self.inner.path(self.file));
        let range = offset..offset.saturating_add(chunk.len() as u64);
        let reading = async move {
            match store.get_range(&path, range.clone()).await {
                // Each store says in a way of its own that the file ends before that.
                Err(error) if !matches!(error, object_store::Error::NotFound { .. }) => {
                    match store.head(&path).await {
                        Ok(there) if there.size < range.end => Ok(Err(there.size)),
                        _ => Err(error),
                    }
                }
                read => read.map(Ok),
            }
        };
        let read = self.inner.wait("reading", Some(self.file), reading)?.map_err(|size| {
            let detail = format!("it ends at {size}, before {} bytes at {offset}", chunk.len());
            self.inner.missing("reading", Some(self.file), detail)
        })?;
        // A store may give less where the file ends before.
        if read.len() != chunk.len() {
            let detail = format!("{} bytes are at {offset} where {} were asked for", read.len(), chunk.len());
            return Err(self.inner.missing("reading", Some(self.file), detail));
        }
        chunk.copy_from_slice(&read);
        Ok(())
    }
}
