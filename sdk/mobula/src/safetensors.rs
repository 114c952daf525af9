//! Tensors in files of the [safetensors format](https://huggingface.co/docs/safetensors), as most model weights are.
//!
//! ```
//! use mobula::{prelude::*, safetensors};
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//! let weights = Tensor::from_vec(&[2, 2], vec![1f32, 2., 3., 4.])?;
//! safetensors::write(&path, [("layer.weight", &weights)], [("made by", "me")])?;
//!
//! let file = safetensors::File::open(&path)?;
//! assert_eq!(file.names().collect::<Vec<_>>(), ["layer.weight"]);
//! assert_eq!(file.tensor("layer.weight")?, weights);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! All of it blocks while it reads or writes: in async code of any length, call it in a sync task or through
//! `tokio::task::spawn_blocking`.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use safetensors::{
    SafeTensorError,
    tensor::{Dtype as Stored, Metadata, TensorInfo, View},
};

use crate::{
    Dtype, Tensor,
    tensor::{RANK_MAX, TooDeep},
};

/// Longest header of a file, in bytes: the format's own limit.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;
/// In front of the header: its length.
const LENGTH_BYTES: u64 = 8;

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system says no.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// It is no safetensors file, or a damaged one.
    #[error("{path} is no whole safetensors file: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such tensor.
    #[error("{path} has no tensor `{name}`")]
    NoSuchTensor {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        name: String,
    },
    /// Its elements, or its dimensions, are not such as a [`Tensor`] can have.
    #[error("tensor `{name}` of {path} cannot be read: {reason}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it has.
        reason: String,
    },
    /// The tensors cannot be written as they are.
    #[error("{path} cannot be written: {reason}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no room for a tensor.
    #[error(transparent)]
    Store(#[from] crate::Error),
}

/// An open file. Its header is checked; tensors are read when they are asked for.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    file: fs::File,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    start: u64,
}

impl File {
    /// Opens a file and reads its header, of at most [`HEADER_BYTES_MAX`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let io = |source| Error::Io { path: path.clone(), source };
        let malformed = |reason: String| Error::Malformed { path: path.clone(), reason };
        let file = fs::File::open(&path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        if len < LENGTH_BYTES {
            return Err(malformed(format!("it has {len} bytes, too few for the length of a header")));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact_at(&mut length, 0).map_err(io)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > HEADER_BYTES_MAX {
            return Err(malformed(format!(
                "its header has {header_bytes} bytes, more than {HEADER_BYTES_MAX}"
            )));
        }
        let start = LENGTH_BYTES + header_bytes;
        if start > len {
            return Err(malformed(format!("its header ends at byte {start}, and the file at {len}")));
        }
        // Bounded just above, by the file's own length too.
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, LENGTH_BYTES).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|error| malformed(error.to_string()))?;
        let end = start.checked_add(metadata.data_len() as u64);
        if end != Some(len) {
            let tensors = metadata.data_len();
            return Err(malformed(format!(
                "its tensors have {tensors} bytes, and there are {}",
                len - start
            )));
        }
        Ok(Self { path, file, metadata, start })
    }

    /// The tensors' names, in the order in which they lie in the file.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.metadata.offset_keys().into_iter()
    }

    /// What else the header says.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.metadata().iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Reads one tensor. Inside a cluster a large one is read right into this node's shared memory, as
    /// [`Tensor::build`] does, so that putting it, or returning it from a task, copies nothing more. It is read and
    /// not mapped: what is in the store never changes, which the kernel enforces by seals that only memory can have. Whoever
    /// can write a file could change what others have read, or cut it, and so end every process that looks there.
    pub fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let Some(TensorInfo { dtype, shape, data_offsets: (from, _) }) = self.metadata.info(name) else {
            return Err(Error::NoSuchTensor { path: self.path.clone(), name: name.to_owned() });
        };
        let unsupported =
            |reason| Error::Unsupported { path: self.path.clone(), name: name.to_owned(), reason };
        let dtype = read_dtype(*dtype).ok_or_else(|| unsupported(format!("its elements are {dtype}")))?;
        if shape.len() > RANK_MAX {
            return Err(unsupported(format!("it has {} dimensions, more than {RANK_MAX}", shape.len())));
        }
        let mut read = Ok(());
        let tensor = Tensor::build_bytes(dtype, shape, |bytes| {
            read = self.file.read_exact_at(bytes, self.start + *from as u64);
        })?;
        read.map_err(|source| Error::Io { path: self.path.clone(), source })?;
        Ok(tensor)
    }
}

/// Writes a file with these tensors and what else there is to say, each by a name of its own. It is written beside its
/// place and then moved there, so that nobody sees a part of it, and only its owner may read it. Tensors in the
/// store are written from where they lie; what is not [contiguous](Tensor::is_contiguous) is copied into order first.
pub fn write<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (impl Into<String>, &'a Tensor)>,
    metadata: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.as_ref().to_owned(), source };
    let unwritable = |reason| Error::Unwritable { path: path.as_ref().to_owned(), reason };
    let mut named: HashMap<String, Contiguous> = HashMap::new();
    for (name, tensor) in tensors {
        let name = name.into();
        // The header's own key for what else there is to say.
        if name == "__metadata__" || named.contains_key(&name) {
            return Err(unwritable(format!("there cannot be a tensor `{name}`, or not twice")));
        }
        let rank = tensor.shape().len();
        if rank > RANK_MAX {
            return Err(unwritable(format!("tensor `{name}`: {}", TooDeep { rank })));
        }
        named.insert(name, Contiguous(tensor.contiguous()?));
    }
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    // Absolute, so that it has a folder.
    let place = std::path::absolute(path.as_ref()).map_err(io)?;
    safetensors::serialize_to_file(named, (!metadata.is_empty()).then_some(metadata), &place).map_err(
        |error| match error {
            SafeTensorError::IoError(source) => io(source),
            other => unwritable(other.to_string()),
        },
    )
}

struct Contiguous(Tensor);

impl View for Contiguous {
    fn dtype(&self) -> Stored {
        match self.0.dtype() {
            Dtype::F16 => Stored::F16,
            Dtype::Bf16 => Stored::BF16,
            Dtype::F32 => Stored::F32,
            Dtype::F64 => Stored::F64,
            Dtype::I8 => Stored::I8,
            Dtype::I16 => Stored::I16,
            Dtype::I32 => Stored::I32,
            Dtype::I64 => Stored::I64,
            Dtype::U8 => Stored::U8,
            Dtype::U16 => Stored::U16,
            Dtype::U32 => Stored::U32,
            Dtype::U64 => Stored::U64,
            Dtype::Bool => Stored::BOOL,
        }
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // It is contiguous, so there are bytes.
        Cow::Borrowed(self.0.as_bytes().unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        self.0.len() * self.0.dtype().bytes()
    }
}

/// `None` for elements that tensors cannot have: complex numbers, and those of less than 16 bits with a point.
fn read_dtype(stored: Stored) -> Option<Dtype> {
    Some(match stored {
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::Bf16,
        Stored::F32 => Dtype::F32,
        Stored::F64 => Dtype::F64,
        Stored::I8 => Dtype::I8,
        Stored::I16 => Dtype::I16,
        Stored::I32 => Dtype::I32,
        Stored::I64 => Dtype::I64,
        Stored::U8 => Dtype::U8,
        Stored::U16 => Dtype::U16,
        Stored::U32 => Dtype::U32,
        Stored::U64 => Dtype::U64,
        Stored::BOOL => Dtype::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    const NOTHING: [(&str, &str); 0] = [];

    /// A file of this header and these bytes.
    fn file(folder: &Path, header: &str, data: &[u8]) -> PathBuf {
        let path = folder.join("bad.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn every_type_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("all.safetensors");
        let tensors = [
            Tensor::from_vec(&[2], vec![f16::from_f32(0.5), f16::MAX]).unwrap(),
            Tensor::from_vec(&[2], vec![bf16::from_f32(0.5), bf16::MIN]).unwrap(),
            Tensor::from_vec(&[1, 2], vec![1.5f32, f32::NAN]).unwrap(),
            Tensor::from_vec(&[], vec![1e300f64]).unwrap(),
            Tensor::from_vec(&[2], vec![-1i8, 1]).unwrap(),
            Tensor::from_vec(&[2], vec![-1i16, 1]).unwrap(),
            Tensor::from_vec(&[2], vec![-1i32, 1]).unwrap(),
            Tensor::from_vec(&[2], vec![i64::MIN, 1]).unwrap(),
            Tensor::from_vec(&[3], vec![1u8, 2, 3]).unwrap(),
            Tensor::from_vec(&[2], vec![u16::MAX, 1]).unwrap(),
            Tensor::from_vec(&[2], vec![u32::MAX, 1]).unwrap(),
            Tensor::from_vec(&[0, 4], Vec::<u64>::new()).unwrap(),
            Tensor::from_bools(&[2], &[true, false]).unwrap(),
        ];
        write(&path, tensors.iter().map(|tensor| (tensor.dtype().to_string(), tensor)), [("by", "us")])
            .unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(file.names().count(), tensors.len());
        assert_eq!(file.metadata().collect::<Vec<_>>(), [("by", "us")]);
        for tensor in &tensors {
            assert_eq!(&file.tensor(&tensor.dtype().to_string()).unwrap(), tensor);
        }
        assert!(file.tensor("f8").unwrap_err().to_string().ends_with("has no tensor `f8`"));
        // What lies there already is replaced as a whole; what was open stays readable.
        let turned = Tensor::from_vec(&[2, 2], vec![1u8, 2, 3, 4]).unwrap().transpose(0, 1).unwrap();
        write(&path, [("turned", &turned)], NOTHING).unwrap();
        assert_eq!(
            File::open(&path).unwrap().tensor("turned").unwrap().as_slice::<u8>().unwrap(),
            [1, 3, 2, 4]
        );
        assert_eq!(&file.tensor("u8").unwrap(), &tensors[8]);
    }

    #[test]
    fn a_bad_file_is_an_error_that_says_what_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let said = |path: &Path| match File::open(path) {
            Err(Error::Malformed { reason, .. }) => reason,
            other => panic!("{other:?}"),
        };
        let whole = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        File::open(file(folder.path(), whole, &[0; 8])).unwrap();
        for (header, data, expected) in [
            (whole, &[0; 7][..], "have 8 bytes, and there are 7"),
            (whole, &[0; 9], "have 8 bytes, and there are 9"),
            (r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, &[0; 8], "invalid shape"),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, &[0; 12], "offset"),
            (
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                &[0; 3],
                "offset",
            ),
            (
                r#"{"a":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#,
                &[0; 8],
                "verflow",
            ),
            (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#, &[0; 8], "-1"),
            (r#"{"a":{"dtype":"Q7","shape":[2],"data_offsets":[0,8]}}"#, &[0; 8], "Q7"),
            ("{", &[], "EOF"),
            ("\u{feff}", &[], "expected"),
        ] {
            let reason = said(&file(folder.path(), header, data));
            assert!(reason.to_lowercase().contains(&expected.to_lowercase()), "{header}: {reason}");
        }
        let path = folder.path().join("short");
        for (bytes, expected) in [
            (vec![0; 7], "too few"),
            (u64::MAX.to_le_bytes().to_vec(), "more than 100000000"),
            (9u64.to_le_bytes().to_vec(), "ends at byte 17, and the file at 8"),
        ] {
            fs::write(&path, bytes).unwrap();
            assert!(said(&path).contains(expected), "{}", said(&path));
        }
        let missing = File::open(folder.path().join("missing")).unwrap_err();
        assert!(matches!(missing, Error::Io { .. }) && missing.to_string().ends_with("missing"));
    }

    #[test]
    fn what_tensors_cannot_have_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let header = r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#;
        let error = File::open(file(folder.path(), header, &[0; 8])).unwrap().tensor("a").unwrap_err();
        assert!(
            error.to_string().starts_with("tensor `a` of") && error.to_string().contains("C64"),
            "{error}"
        );
        let deep = vec!["1"; RANK_MAX + 1].join(",");
        let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{deep}],"data_offsets":[0,1]}}}}"#);
        let error = File::open(file(folder.path(), &header, &[0])).unwrap().tensor("a").unwrap_err();
        assert!(error.to_string().contains("33 dimensions"), "{error}");
        let one = Tensor::zeros::<u8>(&[1]).unwrap();
        let path = folder.path().join("twice");
        let error = write(&path, [("a", &one), ("a", &one)], NOTHING).unwrap_err();
        assert!(error.to_string().contains("`a`") && !path.exists(), "{error}");
        let deep = Tensor::from_array(&ndarray::ArrayD::<u8>::zeros(vec![1; RANK_MAX + 1]));
        let error = write(&path, [("deep", &deep)], NOTHING).unwrap_err().to_string();
        assert!(error.contains("tensor `deep`") && error.contains("33 dimensions, more than 32"), "{error}");
        assert!(!path.exists());
        assert!(write(&path, [("__metadata__", &one)], NOTHING).is_err());
        let nowhere = write(folder.path().join("no/folder"), [("a", &one)], NOTHING).unwrap_err();
        assert!(matches!(nowhere, Error::Io { .. }), "{nowhere}");
    }
}
