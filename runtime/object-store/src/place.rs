//! What a URL names.

use std::{path::PathBuf, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
};
use url::Url;

use crate::{Error, Limits};

/// Longest URL, in bytes.
const URL_BYTES_MAX: usize = 2048;

/// A store, and where in it.
pub(crate) struct Place {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: Path,
    /// What to do where it cannot be used.
    pub(crate) cure: &'static str,
    /// The folder of its own, where it is one.
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    S3,
    Google,
    Azure,
    Folder,
    Memory,
}

impl Kind {
    fn cure(self) -> &'static str {
        match self {
            Self::S3 => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or give the machine a role, AWS_REGION, and for a \
                 store that is not Amazon's AWS_ENDPOINT_URL (with AWS_ALLOW_HTTP=true where that is http); see that \
                 the bucket is there and may be written"
            }
            Self::Google => {
                "set GOOGLE_SERVICE_ACCOUNT to the file of a key, or give the machine a service account; see that \
                 the bucket is there and may be written"
            }
            Self::Azure => {
                "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or give the machine an identity; see \
                 that the container is there and may be written"
            }
            Self::Folder => "make the folder writable for this user, or name another",
            Self::Memory => "name another place",
        }
    }
}

/// Opens what `url` names, with `own` at the end of its path. Reaches for nothing yet.
pub(crate) fn open(
    text: &str,
    own: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    limits: Limits,
) -> Result<Place, Error> {
    let bad = |detail: &str| Error::Url { url: shown(text), detail: detail.to_owned() };
    if text.len() > URL_BYTES_MAX {
        return Err(bad(&format!("it is longer than {URL_BYTES_MAX} bytes")));
    }
    let url = Url::parse(text).map_err(|error| bad(&error.to_string()))?;
    let kind = match url.scheme() {
        "s3" | "s3a" => Kind::S3,
        "gs" => Kind::Google,
        "az" | "adl" | "azure" | "abfs" | "abfss" => Kind::Azure,
        "file" => Kind::Folder,
        "memory" => Kind::Memory,
        other => return Err(Error::Scheme { scheme: other.to_owned() }),
    };
    // `abfss://container@account.host/` has a user by its nature.
    let user = !url.username().is_empty() && kind != Kind::Azure;
    if url.password().is_some() || user {
        return Err(bad("credentials do not belong into it: set them in the environment"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("nothing can stand behind '?' or '#': set options in the environment"));
    }
    let has_host = url.host_str().is_some_and(|host| !host.is_empty());
    match kind {
        Kind::Folder | Kind::Memory if has_host => {
            return Err(bad("it has no host: write three slashes, as in file:///scratch"));
        }
        Kind::S3 | Kind::Google | Kind::Azure if !has_host => {
            return Err(bad("it names no bucket: write for example s3://bucket/folder"));
        }
        _ => {}
    }
    let path = Path::from_url_path(url.path()).map_err(|error| bad(&error.to_string()))?;
    let variables = variables.into_iter();
    let cure = kind.cure();
    let unset = |error: object_store::Error| Error::Settings {
        url: text.to_owned(),
        detail: error.to_string(),
        cure,
    };
    let (store, folder): (Arc<dyn ObjectStore>, _) = match kind {
        Kind::Memory => (Arc::new(InMemory::new()), None),
        Kind::Folder => {
            let folder = url.to_file_path().map_err(|()| bad("it is no path of a file"))?.join(own);
            // Others must not read what lies there, whatever the mode of its files.
            private(&folder).map_err(|source| Error::Unusable {
                detail: format!("making the folder {}, or emptying it: {source}", folder.display()),
                cure,
            })?;
            (Arc::new(LocalFileSystem::new_with_prefix(&folder).map_err(unset)?), Some(folder))
        }
        Kind::S3 => {
            let builder = AmazonS3Builder::new().with_url(text).with_retry(retry(limits));
            let client = |(key, value)| (AmazonS3ConfigKey::Client(key), value);
            let all = settings("AWS_", variables).chain(clients(limits).map(client));
            let builder = all.fold(builder, |builder, (key, value)| builder.with_config(key, value));
            (Arc::new(builder.build().map_err(unset)?), None)
        }
        Kind::Google => {
            let builder = GoogleCloudStorageBuilder::new().with_url(text).with_retry(retry(limits));
            let client = |(key, value)| (GoogleConfigKey::Client(key), value);
            let all = settings("GOOGLE_", variables).chain(clients(limits).map(client));
            let builder = all.fold(builder, |builder, (key, value)| builder.with_config(key, value));
            (Arc::new(builder.build().map_err(unset)?), None)
        }
        Kind::Azure => {
            let builder = MicrosoftAzureBuilder::new().with_url(text).with_retry(retry(limits));
            let client = |(key, value)| (AzureConfigKey::Client(key), value);
            let all = settings("AZURE_", variables).chain(clients(limits).map(client));
            let builder = all.fold(builder, |builder, (key, value)| builder.with_config(key, value));
            (Arc::new(builder.build().map_err(unset)?), None)
        }
    };
    let prefix = if folder.is_some() { Path::default() } else { path.join(own) };
    Ok(Place { store, prefix, cure, folder })
}

/// A URL as it may be shown: without what may be a password.
fn shown(text: &str) -> String {
    let end = text.char_indices().nth(100).map_or(text.len(), |(at, _)| at);
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…@", &text[..scheme]),
        _ => text[..end].to_owned(),
    }
}

/// Makes the folder, empty: what an earlier process had begun to write there has a name that the store does not list.
fn private(folder: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Those variables that mean something to a store.
fn settings<K: std::str::FromStr>(
    prefix: &'static str,
    variables: impl Iterator<Item = (String, String)>,
) -> impl Iterator<Item = (K, String)> {
    variables.filter_map(move |(name, value)| {
        let key = name.starts_with(prefix).then(|| name.to_ascii_lowercase().parse().ok())?;
        Some((key?, value))
    })
}

/// The limits, as settings of an HTTP client.
fn clients(limits: Limits) -> impl Iterator<Item = (ClientConfigKey, String)> {
    let text = |time: Duration| format!("{}ms", time.as_millis());
    [
        (ClientConfigKey::ConnectTimeout, text(limits.connect)),
        (ClientConfigKey::Timeout, text(limits.request)),
    ]
    .into_iter()
}

fn retry(limits: Limits) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: limits.retries,
        retry_timeout: limits.operation,
    }
}
