//! From nodes and buffers to arrays, which lie where the buffers do. Nothing that arrived is trusted.

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, Schema};
use mobula_host::codec;

use crate::{DEPTH_MAX, Error, Kind, Meta, Node, TYPE_BYTES_MAX, is_leaf};

fn malformed(detail: impl Into<String>) -> Error {
    Error::Malformed { detail: detail.into() }
}

pub(crate) fn batch(meta: Meta) -> Result<RecordBatch, Error> {
    let rows = usize::try_from(meta.rows).map_err(|_| malformed("it has too many rows"))?;
    let mut nodes = meta.nodes.into_iter();
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for _ in 0..meta.columns {
        let (field, data) = node(&mut nodes, 0)?;
        if data.len() != rows {
            return Err(malformed(format!("{} has {} rows where {rows} are", field.name(), data.len())));
        }
        fields.push(field);
        columns.push(make_array(data));
    }
    if nodes.next().is_some() {
        return Err(malformed("there are more arrays than columns have"));
    }
    let schema =
        Schema::new(fields).with_metadata(meta.metadata.into_iter().collect::<arrow_schema::Metadata>());
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(Arc::new(schema), columns, &options)?)
}

fn leaf(text: &str) -> Result<DataType, Error> {
    if text.len() > TYPE_BYTES_MAX {
        return Err(malformed("the name of a type is too long"));
    }
    let data_type: DataType = text.parse()?;
    if is_leaf(&data_type) { Ok(data_type) } else { Err(malformed(format!("{text} has children"))) }
}

fn buffer(number: u32) -> Result<Buffer, Error> {
    Ok(Buffer::from(bytes::Bytes::from(codec::receive_buffer(number)?)))
}

/// How long the first buffer of such an array is, where that does not depend on what is in it.
fn first_bytes(data_type: &DataType, len: usize) -> Result<Option<usize>, Error> {
    let (count, width) = match data_type {
        DataType::Boolean => (Some(len.div_ceil(8)), 1),
        DataType::FixedSizeBinary(width) => (Some(len), usize::try_from(*width).unwrap_or(usize::MAX)),
        DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Map(..) => (len.checked_add(1), 4),
        DataType::LargeUtf8 | DataType::LargeBinary | DataType::LargeList(_) => (len.checked_add(1), 8),
        DataType::Utf8View | DataType::BinaryView => (Some(len), 16),
        DataType::Dictionary(key, _) => (Some(len), key.primitive_width().unwrap_or(0)),
        other => match other.primitive_width() {
            Some(width) => (Some(len), width),
            None => return Ok(None),
        },
    };
    let bytes = count.and_then(|count| count.checked_mul(width));
    bytes.map(Some).ok_or_else(|| malformed(format!("an array of {len} is too long")))
}

/// The next node with its children.
fn node(nodes: &mut impl Iterator<Item = Node>, depth: usize) -> Result<(Field, ArrayData), Error> {
    if depth >= DEPTH_MAX {
        return Err(Error::TooDeep);
    }
    let node = nodes.next().ok_or_else(|| malformed("an array is missing"))?;
    let len = usize::try_from(node.len).map_err(|_| malformed("an array is too long"))?;
    let (mut fields, mut children) = (Vec::new(), Vec::new());
    for _ in 0..node.children {
        let (field, data) = self::node(nodes, depth + 1)?;
        fields.push(Arc::new(field));
        children.push(data);
    }
    let one = || match &fields[..] {
        [field] => Ok(Arc::clone(field)),
        _ => Err(malformed(format!("{} children where one belongs", fields.len()))),
    };
    let mut ordered = false;
    let data_type = match node.kind {
        Kind::Leaf(text) => leaf(&text)?,
        Kind::List => DataType::List(one()?),
        Kind::LargeList => DataType::LargeList(one()?),
        Kind::FixedSizeList(size) => {
            let items = usize::try_from(size).ok().and_then(|size| size.checked_mul(len));
            if items.is_none() {
                return Err(malformed(format!("{len} lists of {size} items")));
            }
            DataType::FixedSizeList(one()?, size)
        }
        Kind::Struct => DataType::Struct(fields.into()),
        Kind::Map(sorted) => DataType::Map(one()?, sorted),
        Kind::Dictionary(key, is_ordered) => {
            ordered = is_ordered;
            let key = leaf(&key)?;
            if !key.is_dictionary_key_type() {
                return Err(malformed(format!("{key} is no type of a dictionary's keys")));
            }
            DataType::Dictionary(Box::new(key), Box::new(one()?.data_type().clone()))
        }
    };
    let mut builder = ArrayData::builder(data_type.clone()).len(len).child_data(children);
    let mut first = first_bytes(&data_type, len)?;
    for number in node.buffers {
        let mut buffer = buffer(number)?;
        if let Some(bytes) = first.take() {
            if buffer.len() < bytes {
                let found = buffer.len();
                return Err(malformed(format!("a buffer of {found} bytes where {data_type} has {bytes}")));
            }
            // Arrow takes all of it for elements, of which each must be whole.
            buffer = buffer.slice_with_length(0, bytes);
        }
        builder = builder.add_buffer(buffer);
    }
    if let Some(number) = node.nulls {
        builder = builder.null_bit_buffer(Some(buffer(number)?));
    }
    let data = builder.build()?;
    let metadata: arrow_schema::Metadata = node.metadata.into_iter().collect();
    let field =
        Field::new(node.name, data_type, node.nullable).with_metadata(metadata).with_dict_is_ordered(ordered);
    Ok((field, data))
}
