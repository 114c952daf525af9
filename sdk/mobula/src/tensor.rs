//! Tensors: typed arrays whose bytes lie in shared memory and are never copied when they are read.

use std::{
    fmt,
    ops::{Bound, RangeBounds},
};

use half::{bf16, f16};
use mobula_host::codec;
use mobula_proto::{FailureKind, wire::INLINE_BYTES_MAX};
use mobula_store::Bytes;
use ndarray::{ArrayD, ArrayViewD, IxDyn, ShapeBuilder};
use rkyv::{
    Archive, Deserialize, Place, Resolver, Serialize,
    rancor::{Fallible, Source},
};

use crate::{Error, Result};

/// Most dimensions of a tensor.
pub const RANK_MAX: usize = 32;

/// The type of a tensor's elements.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Dtype {
    F16,
    Bf16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

mod private {
    pub trait Sealed {}
}

/// A type that tensors are made of. Bool elements are bytes of 0 and 1 and are read as `u8`.
pub trait Element: private::Sealed + bytemuck::Pod + Send + Sync {
    /// Its dtype.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),* $(,)?) => {$(
        impl private::Sealed for $type {}
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

elements! {
    f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64, i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
}

/// An array of numbers. A clone shares the same bytes, and so do parts of it ([`Tensor::slice`], [`Tensor::select`])
/// and its dimensions in another order ([`Tensor::permute`], [`Tensor::transpose`]).
///
/// One that was received lies in the object store, read-only, and keeps its object pinned there for as long as it,
/// a clone or a part of it lives; nothing is copied until [`Tensor::to_array`] is called. One that is sent or put
/// arrives in row-major order: what is not is copied into that order first, by [`Tensor::contiguous`].
///
/// ```
/// # use mobula::prelude::*;
/// let image = Tensor::from_vec(&[2, 3], vec![0u8, 1, 2, 3, 4, 5])?;
/// let columns = image.transpose(0, 1)?.slice(0, 1..)?;
/// assert_eq!((columns.shape(), columns.strides()), (&[2, 2][..], &[1, 3][..]));
/// assert_eq!(columns.view::<u8>()?[[1, 0]], 2);
/// assert_eq!(columns.contiguous()?.as_slice::<u8>()?, [1, 4, 2, 5]);
/// # Ok::<(), mobula::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In elements, one for each dimension.
    strides: Vec<usize>,
    /// From its first element to its last.
    bytes: Bytes,
}

/// What of a tensor lies in the archive; the bytes lie beside it.
#[derive(Archive, Serialize, Deserialize)]
pub struct Meta {
    dtype: Dtype,
    shape: Vec<u64>,
    buffer: u32,
}

impl Meta {
    fn new(dtype: Dtype, shape: &[usize], buffer: u32) -> Self {
        Self { dtype, shape: shape.iter().map(|extent| *extent as u64).collect(), buffer }
    }
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent))
}

/// The strides of elements in row-major order.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for at in (1..shape.len()).rev() {
        // No overflow but in a tensor without elements, whose strides do not matter.
        strides[at - 1] = strides[at].saturating_mul(shape[at]);
    }
    strides
}

fn shape_error(message: String) -> Error {
    Error::new(FailureKind::Codec, message)
}

impl Tensor {
    /// Elements in row-major order. The vector is taken over, not copied.
    pub fn from_vec<T: Element>(shape: &[usize], values: Vec<T>) -> Result<Self> {
        if shape.len() > RANK_MAX || elements(shape) != Some(values.len()) {
            return Err(shape_error(format!(
                "{} elements do not fill a tensor of shape {shape:?} (rank at most {RANK_MAX})",
                values.len()
            )));
        }
        Ok(Self::in_order(T::DTYPE, shape.to_vec(), Bytes::from_vec(values)))
    }

    /// `bytes` are its elements in row-major order, as many as the shape says.
    fn in_order(dtype: Dtype, shape: Vec<usize>, bytes: Bytes) -> Self {
        Self { dtype, strides: row_major(&shape), shape, bytes }
    }

    /// Elements of a bool tensor.
    pub fn from_bools(shape: &[usize], values: &[bool]) -> Result<Self> {
        let mut tensor =
            Self::from_vec(shape, values.iter().map(|value| u8::from(*value)).collect::<Vec<u8>>())?;
        tensor.dtype = Dtype::Bool;
        Ok(tensor)
    }

    /// A copy of an array, in row-major order. One of more than [`RANK_MAX`] dimensions can be sent, put or written only once
    /// some of them are joined, by [`Self::reshape`].
    pub fn from_array<T: Element, D: ndarray::Dimension>(array: &ndarray::ArrayRef<T, D>) -> Self {
        let values: Vec<T> = array.iter().copied().collect();
        Self::in_order(T::DTYPE, array.shape().to_vec(), Bytes::from_vec(values))
    }

    /// Zeros.
    pub fn zeros<T: Element>(shape: &[usize]) -> Result<Self> {
        let count = elements(shape).ok_or_else(|| shape_error(format!("shape {shape:?} is too large")))?;
        Self::from_vec(shape, vec![T::zeroed(); count])
    }

    /// A tensor that is written where it will lie: in the shared memory of this node. `fill` gets its elements in
    /// row-major order, with unspecified values, and writes them all. Put as it is, or returned from a task as it is,
    /// it is not copied; inside another value, or in another shape, it is copied once like any other.
    ///
    /// Outside of a cluster it is built in ordinary memory. Fails where the shape is too large, and like
    /// [`crate::put`] where the store is full or smaller than that.
    ///
    /// ```
    /// # use mobula::prelude::*;
    /// let squares = Tensor::build(&[2, 3], |elements: &mut [f32]| {
    ///     for (i, element) in elements.iter_mut().enumerate() {
    ///         *element = (i * i) as f32;
    ///     }
    /// })?;
    /// assert_eq!(squares.as_slice::<f32>()?, [0.0, 1.0, 4.0, 9.0, 16.0, 25.0]);
    /// # Ok::<(), mobula::Error>(())
    /// ```
    pub fn build<T: Element>(shape: &[usize], fill: impl FnOnce(&mut [T])) -> Result<Self> {
        Self::build_bytes(T::DTYPE, shape, |bytes| fill(bytemuck::cast_slice_mut(bytes)))
    }

    /// As [`Self::build`], by bytes: they are aligned for elements of `dtype`.
    pub(crate) fn build_bytes(dtype: Dtype, shape: &[usize], fill: impl FnOnce(&mut [u8])) -> Result<Self> {
        let too_large = || shape_error(format!("shape {shape:?} is too large (rank at most {RANK_MAX})"));
        let count = elements(shape).filter(|_| shape.len() <= RANK_MAX).ok_or_else(too_large)?;
        let len = count.checked_mul(dtype.bytes()).ok_or_else(too_large)?;
        let bytes = match crate::cluster::current() {
            Ok(runtime) if len > INLINE_BYTES_MAX => {
                let meta = Meta::new(dtype, shape, 0);
                codec::build(&runtime, &meta, len as u64, fill)?
            }
            _ => {
                let mut words = vec![0u64; len.div_ceil(size_of::<u64>())];
                fill(&mut bytemuck::cast_slice_mut(&mut words)[..len]);
                part(&Bytes::from_vec(words), 0..len)?
            }
        };
        Ok(Self::in_order(dtype, shape.to_vec(), bytes))
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many elements lie between neighbours, for each dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// Whether its elements lie in row-major order, without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.is_empty()
            || self.shape.iter().zip(&self.strides).rev().all(|(extent, stride)| {
                let fits = *extent == 1 || *stride == expected;
                expected *= extent;
                fits
            })
    }

    /// The same elements in row-major order: itself if they are, else a copy.
    pub fn contiguous(&self) -> Result<Self> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        let bytes = match self.dtype.bytes() {
            1 => self.copied::<u8>(),
            2 => self.copied::<u16>(),
            4 => self.copied::<u32>(),
            _ => self.copied::<u64>(),
        }?;
        Ok(Self::in_order(self.dtype, self.shape.clone(), bytes))
    }

    fn copied<T: Element>(&self) -> Result<Bytes> {
        Ok(Bytes::from_vec(self.array::<T>()?.as_standard_layout().into_owned().into_raw_vec_and_offset().0))
    }

    /// Its bytes, in the machine's byte order. Fails where they are not [contiguous](Tensor::is_contiguous).
    pub fn as_bytes(&self) -> Result<&[u8]> {
        if self.is_contiguous() {
            return Ok(&self.bytes);
        }
        Err(shape_error(format!(
            "the tensor of shape {:?} has strides {:?}, which is not row-major: call `contiguous` first",
            self.shape, self.strides
        )))
    }

    /// Its elements, in place and row-major order. Fails where they are of another type, or not
    /// [contiguous](Tensor::is_contiguous).
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.check::<T>()?;
        cast(self.as_bytes()?)
    }

    /// A view as an array, in place. Fails where its elements are of another type.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>> {
        self.check::<T>()?;
        self.array()
    }

    fn check<T: Element>(&self) -> Result<()> {
        if self.dtype == T::DTYPE || (self.dtype == Dtype::Bool && T::DTYPE == Dtype::U8) {
            return Ok(());
        }
        Err(shape_error(format!("the tensor holds {}, not {}", self.dtype, T::DTYPE)))
    }

    /// A view of its elements as any type of their size.
    fn array<T: Element>(&self) -> Result<ArrayViewD<'_, T>> {
        let shape = IxDyn(&self.shape);
        let array = if self.is_contiguous() {
            ArrayViewD::from_shape(shape, cast(&self.bytes)?)
        } else {
            ArrayViewD::from_shape(shape.strides(IxDyn(&self.strides)), cast(&self.bytes)?)
        };
        array.map_err(|error| shape_error(error.to_string()))
    }

    /// An array of its own.
    pub fn to_array<T: Element>(&self) -> Result<ArrayD<T>> {
        Ok(self.view::<T>()?.to_owned())
    }

    /// The same elements, in row-major order, in another shape. Nothing is copied where they lie in that order.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.len() > RANK_MAX || elements(shape) != Some(self.len()) {
            return Err(shape_error(format!("{:?} cannot be reshaped to {shape:?}", self.shape)));
        }
        Ok(Self::in_order(self.dtype, shape.to_vec(), self.contiguous()?.bytes))
    }

    /// What lies within `range` of dimension `dim`; nothing is copied.
    pub fn slice(&self, dim: usize, range: impl RangeBounds<usize>) -> Result<Self> {
        let extent = self.extent(dim)?;
        let from = match range.start_bound() {
            Bound::Included(at) => Some(*at),
            Bound::Excluded(at) => at.checked_add(1),
            Bound::Unbounded => Some(0),
        };
        let to = match range.end_bound() {
            Bound::Included(at) => at.checked_add(1),
            Bound::Excluded(at) => Some(*at),
            Bound::Unbounded => Some(extent),
        };
        let (Some(from), Some(to)) = (from, to) else {
            return Err(shape_error("a range ends at the largest number there is".to_owned()));
        };
        if from > to || to > extent {
            return Err(shape_error(format!(
                "{from}..{to} is not within dimension {dim} of a tensor of shape {:?}",
                self.shape
            )));
        }
        let mut shape = self.shape.clone();
        shape[dim] = to - from;
        let bytes = if shape.contains(&0) {
            Bytes::new()
        } else {
            let start = from * self.strides[dim];
            let last: usize =
                shape.iter().zip(&self.strides).map(|(extent, stride)| (extent - 1) * stride).sum();
            let size = self.dtype.bytes();
            part(&self.bytes, start * size..(start + last + 1) * size)?
        };
        Ok(Self { dtype: self.dtype, shape, strides: self.strides.clone(), bytes })
    }

    /// What lies at `index` of dimension `dim`, without that dimension; nothing is copied.
    pub fn select(&self, dim: usize, index: usize) -> Result<Self> {
        let mut selected = self.slice(dim, index..=index)?;
        selected.shape.remove(dim);
        selected.strides.remove(dim);
        Ok(selected)
    }

    /// Its dimensions in another order: dimension `i` of what comes is `order[i]` of this one. Nothing is copied.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..self.shape.len()) {
            return Err(shape_error(format!(
                "{order:?} does not name each dimension of a tensor of shape {:?} once",
                self.shape
            )));
        }
        Ok(Self {
            dtype: self.dtype,
            shape: order.iter().map(|dim| self.shape[*dim]).collect(),
            strides: order.iter().map(|dim| self.strides[*dim]).collect(),
            bytes: self.bytes.clone(),
        })
    }

    /// Two dimensions exchanged; nothing is copied.
    pub fn transpose(&self, one: usize, other: usize) -> Result<Self> {
        self.extent(one)?;
        self.extent(other)?;
        let mut tensor = self.clone();
        tensor.shape.swap(one, other);
        tensor.strides.swap(one, other);
        Ok(tensor)
    }

    fn extent(&self, dim: usize) -> Result<usize> {
        self.shape.get(dim).copied().ok_or_else(|| {
            shape_error(format!("a tensor of shape {:?} has no dimension {dim}, counted from 0", self.shape))
        })
    }
}

/// Elements of one type and shape that are bit by bit the same.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype
            && self.shape == other.shape
            && match (self.contiguous(), other.contiguous()) {
                (Ok(one), Ok(other)) => one.bytes == other.bytes,
                _ => false,
            }
    }
}

fn cast<T: Element>(bytes: &[u8]) -> Result<&[T]> {
    bytemuck::try_cast_slice(bytes)
        .map_err(|error| shape_error(format!("the tensor's bytes are not {} elements: {error}", T::DTYPE)))
}

fn part(bytes: &Bytes, range: std::ops::Range<usize>) -> Result<Bytes> {
    bytes.slice(range).map_err(|error| Error::new(FailureKind::Internal, error.to_string()))
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

/// What [`Tensor`] keeps between serializing and resolving.
pub struct TensorResolver {
    meta: Meta,
    inner: Resolver<Meta>,
}

impl Archive for Tensor {
    type Archived = ArchivedMeta;
    type Resolver = TensorResolver;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        resolver.meta.resolve(resolver.inner, out);
    }
}

impl<S> Serialize<S> for Tensor
where
    S: Fallible + rkyv::ser::Allocator + rkyv::ser::Writer + ?Sized,
    S::Error: Source,
{
    fn serialize(&self, serializer: &mut S) -> std::result::Result<Self::Resolver, S::Error> {
        if self.shape.len() > RANK_MAX {
            return Err(S::Error::new(TooDeep { rank: self.shape.len() }));
        }
        let bytes = self.contiguous().map_err(S::Error::new)?.bytes;
        let buffer = codec::collect_buffer(bytes).map_err(S::Error::new)?;
        let meta = Meta::new(self.dtype, &self.shape, buffer);
        let inner = meta.serialize(serializer)?;
        Ok(TensorResolver { meta, inner })
    }
}

/// Why a tensor cannot travel.
#[derive(Debug, thiserror::Error)]
#[error("the tensor has {rank} dimensions, more than {RANK_MAX}: join some of them with `reshape`")]
pub(crate) struct TooDeep {
    pub(crate) rank: usize,
}

/// Why received bytes are no tensor.
#[derive(Debug, thiserror::Error)]
#[error("a tensor of shape {shape:?} and type {dtype} does not have {bytes} bytes")]
struct Mismatch {
    shape: Vec<u64>,
    dtype: Dtype,
    bytes: usize,
}

impl<D> Deserialize<Tensor, D> for ArchivedMeta
where
    D: Fallible + ?Sized,
    D::Error: Source,
{
    fn deserialize(&self, deserializer: &mut D) -> std::result::Result<Tensor, D::Error> {
        let meta: Meta = self.deserialize(deserializer)?;
        let bytes = codec::receive_buffer(meta.buffer).map_err(D::Error::new)?;
        let shape: Vec<usize> =
            meta.shape.iter().map(|extent| usize::try_from(*extent).unwrap_or(usize::MAX)).collect();
        let expected = elements(&shape).and_then(|count| count.checked_mul(meta.dtype.bytes()));
        if shape.len() > RANK_MAX || expected != Some(bytes.len()) {
            return Err(D::Error::new(Mismatch { shape: meta.shape, dtype: meta.dtype, bytes: bytes.len() }));
        }
        Ok(Tensor::in_order(meta.dtype, shape, bytes))
    }
}

#[cfg(test)]
mod tests;
