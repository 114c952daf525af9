//! Tensors: typed arrays whose bytes lie in shared memory and are never copied when they are read.

use std::fmt;

use half::{bf16, f16};
use mobula_host::codec;
use mobula_proto::{FailureKind, wire::INLINE_BYTES_MAX};
use mobula_store::Bytes;
use ndarray::{ArrayD, ArrayViewD, IxDyn};
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

/// A contiguous (row-major) array. A clone shares the same bytes.
///
/// One that was received lies in the object store, read-only, and keeps its object pinned there for as long as it
/// or a clone lives; nothing is copied until [`Tensor::to_array`] is called.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
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
        Ok(Self { dtype: T::DTYPE, shape: shape.to_vec(), bytes: Bytes::from_vec(values) })
    }

    /// Elements of a bool tensor.
    pub fn from_bools(shape: &[usize], values: &[bool]) -> Result<Self> {
        let mut tensor =
            Self::from_vec(shape, values.iter().map(|value| u8::from(*value)).collect::<Vec<u8>>())?;
        tensor.dtype = Dtype::Bool;
        Ok(tensor)
    }

    /// A copy of an array, in row-major order.
    pub fn from_array<T: Element, D: ndarray::Dimension>(array: &ndarray::ArrayRef<T, D>) -> Self {
        let values: Vec<T> = array.iter().copied().collect();
        Self { dtype: T::DTYPE, shape: array.shape().to_vec(), bytes: Bytes::from_vec(values) }
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
        let too_large = || shape_error(format!("shape {shape:?} is too large (rank at most {RANK_MAX})"));
        let count = elements(shape).filter(|_| shape.len() <= RANK_MAX).ok_or_else(too_large)?;
        let len = count.checked_mul(size_of::<T>()).ok_or_else(too_large)?;
        let runtime = match crate::cluster::current() {
            Ok(runtime) if len > INLINE_BYTES_MAX => runtime,
            _ => {
                let mut values = vec![T::zeroed(); count];
                fill(&mut values);
                return Self::from_vec(shape, values);
            }
        };
        let meta = Meta::new(T::DTYPE, shape, 0);
        let bytes =
            codec::build(&runtime, &meta, len as u64, |buffer| fill(bytemuck::cast_slice_mut(buffer)))?;
        Ok(Self { dtype: T::DTYPE, shape: shape.to_vec(), bytes })
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its extents.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// How many elements it has.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Its bytes, row-major, in the machine's byte order.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its elements, in place. Fails where they are of another type.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        let matches = self.dtype == T::DTYPE || (self.dtype == Dtype::Bool && T::DTYPE == Dtype::U8);
        if !matches {
            return Err(shape_error(format!("the tensor holds {}, not {}", self.dtype, T::DTYPE)));
        }
        bytemuck::try_cast_slice(&self.bytes).map_err(|error| {
            shape_error(format!("the tensor's bytes are not {} elements: {error}", T::DTYPE))
        })
    }

    /// A view as an array, in place.
    pub fn view<T: Element>(&self) -> Result<ArrayViewD<'_, T>> {
        ArrayViewD::from_shape(IxDyn(&self.shape), self.as_slice()?)
            .map_err(|error| shape_error(error.to_string()))
    }

    /// An array of its own.
    pub fn to_array<T: Element>(&self) -> Result<ArrayD<T>> {
        Ok(self.view::<T>()?.to_owned())
    }

    /// The same elements in another shape; nothing is copied.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.len() > RANK_MAX || elements(shape) != Some(self.len()) {
            return Err(shape_error(format!("{:?} cannot be reshaped to {shape:?}", self.shape)));
        }
        Ok(Self { dtype: self.dtype, shape: shape.to_vec(), bytes: self.bytes.clone() })
    }
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
        let buffer = codec::collect_buffer(self.bytes.clone()).map_err(S::Error::new)?;
        let meta = Meta::new(self.dtype, &self.shape, buffer);
        let inner = meta.serialize(serializer)?;
        Ok(TensorResolver { meta, inner })
    }
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
        Ok(Tensor { dtype: meta.dtype, shape, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_types_are_checked() {
        assert!(Tensor::from_vec(&[2, 2], vec![1f32; 3]).is_err());
        assert!(Tensor::from_vec(&[usize::MAX, 2], vec![1f32; 3]).is_err());
        let tensor = Tensor::from_vec(&[2, 3], vec![1f32, 2., 3., 4., 5., 6.]).unwrap();
        assert!(tensor.as_slice::<f64>().is_err());
        assert_eq!(tensor.view::<f32>().unwrap()[[1, 2]], 6.0);
        assert_eq!(tensor.reshape(&[6]).unwrap().as_bytes().as_ptr(), tensor.as_bytes().as_ptr());
        assert!(tensor.reshape(&[5]).is_err());
        assert_eq!(Tensor::from_bools(&[2], &[true, false]).unwrap().as_slice::<u8>().unwrap(), &[1, 0]);
    }
}
