//! Record batches of [Apache Arrow](https://arrow.apache.org) as values of a cluster: put, passed and returned like any
//! other, and read where they lie.
//!
//! A [`Batch`] is an [`arrow_array::RecordBatch`], whatever made it, and what reads those reads it. Its schema lies in the
//! archive of the object, and each of its buffers beside that, at a multiple of 64 bytes. So putting one copies each buffer once, and
//! receiving one copies nothing: its arrays lie in the object store, read-only, and keep their object pinned there for as
//! long as any of them, or a part of one, lives.
//!
//! A part of a batch ([`RecordBatch::slice`]) takes what its own rows take, with two exceptions. Arrays of views
//! (`Utf8View`, `BinaryView`) take all their buffers, as long as their rows name at least half of the bytes there; where
//! they name less, that is copied together first. The values of a dictionary travel whole, whichever of them the keys
//! name: unpack the column, or pack it anew, where that is too much.
//!
//! What arrives is validated as Arrow asks, so malformed bytes are an error. That costs nothing for numbers, and a look at
//! each value of strings, lists and dictionaries.
//!
//! All types can travel but unions, run-end encoded arrays and views of lists.

#![forbid(unsafe_code)]

mod read;
mod write;

use std::ops::Deref;

use arrow_array::RecordBatch;
use arrow_schema::{ArrowError, DataType, TimeUnit};
use rkyv::{
    Archive, Deserialize, Place, Resolver, Serialize,
    rancor::{Fallible, Source},
};

pub use arrow_array;
pub use arrow_schema;

/// How deep types may be nested.
pub const DEPTH_MAX: usize = 64;
/// Longest name of a type without children, such as `Timestamp(ns, "+01:00")`, in bytes.
pub const TYPE_BYTES_MAX: usize = 128;

/// A record batch that can cross to another process. A clone shares the same memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch(pub RecordBatch);

impl Batch {
    /// The record batch.
    pub fn into_inner(self) -> RecordBatch {
        self.0
    }
}

impl From<RecordBatch> for Batch {
    fn from(batch: RecordBatch) -> Self {
        Self(batch)
    }
}

impl From<Batch> for RecordBatch {
    fn from(batch: Batch) -> Self {
        batch.0
    }
}

impl Deref for Batch {
    type Target = RecordBatch;

    fn deref(&self) -> &RecordBatch {
        &self.0
    }
}

/// Why a record batch cannot travel, or what arrived is none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A type that cannot travel.
    #[error(
        "a column of type {data_type} cannot travel: cast it to another type, such as that of its values"
    )]
    Type {
        /// The type.
        data_type: String,
    },
    /// Types within types within types.
    #[error("a column's type is nested more than {DEPTH_MAX} deep: flatten it")]
    TooDeep,
    /// What arrived does not fit together.
    #[error("malformed record batch: {detail}")]
    Malformed {
        /// What is wrong.
        detail: String,
    },
    /// Arrow's own validation.
    #[error("malformed record batch: {0}")]
    Arrow(#[from] ArrowError),
    /// A buffer that is not there, or a batch that is encoded by something other than a cluster.
    #[error(transparent)]
    Codec(#[from] mobula_host::codec::Error),
}

/// A name of something, and text about it.
type Texts = Vec<(String, String)>;

/// What of a batch lies in the archive; the buffers lie beside it.
#[derive(Archive, Serialize, Deserialize, Debug)]
pub struct Meta {
    rows: u64,
    columns: u32,
    metadata: Texts,
    /// Each column, then its children, and so on.
    nodes: Vec<Node>,
}

/// An array, and the field that it is of.
#[derive(Archive, Serialize, Deserialize, Debug)]
struct Node {
    name: String,
    nullable: bool,
    metadata: Texts,
    kind: Kind,
    len: u64,
    /// The buffer of its validity bits, from the first.
    nulls: Option<u32>,
    buffers: Vec<u32>,
    children: u32,
}

/// The type of a node, without those of its children.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
enum Kind {
    /// As Arrow writes it.
    Leaf(String),
    List,
    LargeList,
    FixedSizeList(i32),
    Struct,
    /// Whether its keys are sorted.
    Map(bool),
    /// The type of its keys, and whether its values are ordered.
    Dictionary(String, bool),
}

/// Whether it has no children, and can be.
fn is_leaf(data_type: &DataType) -> bool {
    match data_type {
        DataType::Time32(unit) => matches!(unit, TimeUnit::Second | TimeUnit::Millisecond),
        DataType::Time64(unit) => matches!(unit, TimeUnit::Microsecond | TimeUnit::Nanosecond),
        DataType::FixedSizeBinary(width) => *width >= 0,
        DataType::Null
        | DataType::Boolean
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View => true,
        other => other.primitive_width().is_some(),
    }
}

/// What [`Batch`] keeps between serializing and resolving.
pub struct BatchResolver {
    meta: Meta,
    inner: Resolver<Meta>,
}

impl Archive for Batch {
    type Archived = ArchivedMeta;
    type Resolver = BatchResolver;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        resolver.meta.resolve(resolver.inner, out);
    }
}

impl<S> Serialize<S> for Batch
where
    S: Fallible + rkyv::ser::Allocator + rkyv::ser::Writer + ?Sized,
    S::Error: Source,
{
    fn serialize(&self, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        let meta = write::meta(&self.0).map_err(S::Error::new)?;
        let inner = meta.serialize(serializer)?;
        Ok(BatchResolver { meta, inner })
    }
}

impl<D> Deserialize<Batch, D> for ArchivedMeta
where
    D: Fallible + ?Sized,
    D::Error: Source,
{
    fn deserialize(&self, deserializer: &mut D) -> Result<Batch, D::Error> {
        let meta: Meta = Deserialize::<Meta, D>::deserialize(self, deserializer)?;
        read::batch(meta).map(Batch).map_err(D::Error::new)
    }
}

#[cfg(test)]
mod tests;
