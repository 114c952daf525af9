//! From arrays to nodes and buffers. Nothing is copied here but offsets and bits of arrays that are parts of others, and
//! what views name of buffers most of which nobody names.

use arrow_array::{
    Array, GenericByteViewArray, RecordBatch,
    types::{BinaryViewType, ByteViewType, StringViewType},
};
use arrow_buffer::{BooleanBuffer, Buffer};
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field};
use mobula_host::codec;
use mobula_store::Bytes;

use crate::{DEPTH_MAX, Error, Kind, Meta, Node, TYPE_BYTES_MAX, Texts, is_leaf};

pub(crate) fn meta(batch: &RecordBatch) -> Result<Meta, Error> {
    let mut nodes = Vec::new();
    let schema = batch.schema_ref();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        node(field, &column.to_data(), 0, &mut nodes)?;
    }
    Ok(Meta {
        rows: batch.num_rows() as u64,
        columns: batch.num_columns() as u32,
        metadata: texts(&schema.metadata),
        nodes,
    })
}

fn texts(metadata: &arrow_schema::Metadata) -> Texts {
    metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn kind(field: &Field) -> Result<Kind, Error> {
    let data_type = field.data_type();
    let wrong = || Error::Type { data_type: data_type.to_string().chars().take(TYPE_BYTES_MAX).collect() };
    let leaf = |leaf: &DataType| {
        let text = leaf.to_string();
        let again = text.parse::<DataType>().is_ok_and(|parsed| parsed == *leaf);
        if is_leaf(leaf) && text.len() <= TYPE_BYTES_MAX && again { Ok(text) } else { Err(wrong()) }
    };
    Ok(match data_type {
        DataType::List(_) => Kind::List,
        DataType::LargeList(_) => Kind::LargeList,
        DataType::FixedSizeList(_, size) => Kind::FixedSizeList(*size),
        DataType::Struct(_) => Kind::Struct,
        DataType::Map(_, sorted) => Kind::Map(*sorted),
        DataType::Dictionary(key, _) => {
            Kind::Dictionary(leaf(key)?, field.dict_is_ordered().unwrap_or_default())
        }
        other => Kind::Leaf(leaf(other)?),
    })
}

fn node(field: &Field, data: &ArrayData, depth: usize, nodes: &mut Vec<Node>) -> Result<(), Error> {
    if depth >= DEPTH_MAX {
        return Err(Error::TooDeep);
    }
    let mut buffers = Vec::new();
    let mut children: Vec<(Field, ArrayData)> = Vec::new();
    let (at, len) = (data.offset(), data.len());
    let plain = |width: usize| part(&data.buffers()[0], at * width, len * width);
    match data.data_type() {
        DataType::Null => {}
        DataType::Boolean => {
            buffers.push(BooleanBuffer::new(data.buffers()[0].clone(), at, len).sliced());
        }
        DataType::FixedSizeBinary(width) => buffers.push(plain(usize::try_from(*width).unwrap_or(0))?),
        DataType::Utf8 | DataType::Binary => {
            let (offsets, from, to) = offsets::<i32>(data)?;
            buffers.extend([offsets, part(&data.buffers()[1], from, to - from)?]);
        }
        DataType::LargeUtf8 | DataType::LargeBinary => {
            let (offsets, from, to) = offsets::<i64>(data)?;
            buffers.extend([offsets, part(&data.buffers()[1], from, to - from)?]);
        }
        DataType::Utf8View => buffers = views::<StringViewType>(data),
        DataType::BinaryView => buffers = views::<BinaryViewType>(data),
        DataType::List(item) | DataType::Map(item, _) => {
            let (offsets, from, to) = offsets::<i32>(data)?;
            buffers.push(offsets);
            children.push((item.as_ref().clone(), data.child_data()[0].slice(from, to - from)));
        }
        DataType::LargeList(item) => {
            let (offsets, from, to) = offsets::<i64>(data)?;
            buffers.push(offsets);
            children.push((item.as_ref().clone(), data.child_data()[0].slice(from, to - from)));
        }
        DataType::FixedSizeList(item, size) => {
            let size = usize::try_from(*size).unwrap_or(0);
            children.push((item.as_ref().clone(), data.child_data()[0].slice(at * size, len * size)));
        }
        DataType::Struct(fields) => {
            let slices = data.child_data().iter().map(|child| child.slice(at, len));
            children.extend(fields.iter().map(|field| field.as_ref().clone()).zip(slices));
        }
        DataType::Dictionary(key, value) => {
            buffers.push(plain(key.primitive_width().unwrap_or(0))?);
            children.push((Field::new("", value.as_ref().clone(), true), data.child_data()[0].clone()));
        }
        other => match other.primitive_width() {
            Some(width) => buffers.push(plain(width)?),
            None => return Err(Error::Type { data_type: other.to_string() }),
        },
    }
    let nulls = data.nulls().map(|nulls| beside(nulls.inner().sliced())).transpose()?;
    nodes.push(Node {
        name: field.name().clone(),
        nullable: field.is_nullable(),
        metadata: texts(field.metadata()),
        kind: kind(field)?,
        len: len as u64,
        nulls,
        buffers: buffers.into_iter().map(beside).collect::<Result<_, _>>()?,
        children: children.len() as u32,
    });
    for (field, child) in children {
        node(&field, &child, depth + 1, nodes)?;
    }
    Ok(())
}

/// The views of an array and the buffers that they lie in: those that it has, or one with what the views name, copied
/// together, where that is less than half.
pub(crate) fn views<T: ByteViewType + ?Sized>(data: &ArrayData) -> Vec<Buffer> {
    let mut array = GenericByteViewArray::<T>::from(data.clone());
    let held: usize = array.data_buffers().iter().map(Buffer::len).sum();
    if array.total_buffer_bytes_used() < held / 2 {
        array = array.gc();
    }
    let views = array.views().inner().clone();
    std::iter::once(views).chain(array.data_buffers().iter().cloned()).collect()
}

/// Puts a buffer beside the archive, where it is copied to once, when the object is written.
fn beside(buffer: Buffer) -> Result<u32, Error> {
    Ok(codec::collect_buffer(Bytes::from_owner(bytes::Bytes::from(buffer)))?)
}

/// A part of a buffer that an array says it has.
fn part(buffer: &Buffer, from: usize, len: usize) -> Result<Buffer, Error> {
    if from.checked_add(len).is_none_or(|to| to > buffer.len()) {
        return Err(Error::Malformed {
            detail: format!("an array ends behind its buffer of {} bytes", buffer.len()),
        });
    }
    Ok(buffer.slice_with_length(from, len))
}

trait Offset: arrow_buffer::ArrowNativeType + std::ops::Sub<Output = Self> {}
impl Offset for i32 {}
impl Offset for i64 {}

/// The offsets of an array, from 0 on, and where in its values what they name begins and ends.
fn offsets<T: Offset>(data: &ArrayData) -> Result<(Buffer, usize, usize), Error> {
    let buffer = &data.buffers()[0];
    if data.is_empty() {
        return Ok((Buffer::from_vec(vec![T::default()]), 0, 0));
    }
    let width = size_of::<T>();
    let own = part(buffer, data.offset() * width, (data.len() + 1) * width)?;
    let all = own.typed_data::<T>();
    let (first, last) = (all[0], all[data.len()]);
    let (from, to) = (first.as_usize(), last.as_usize());
    if from > to {
        return Err(Error::Malformed { detail: "offsets go back".to_owned() });
    }
    let own =
        if from == 0 { own } else { Buffer::from_vec(all.iter().map(|at| *at - first).collect::<Vec<T>>()) };
    Ok((own, from, to))
}
