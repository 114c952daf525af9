use std::{fmt::Write, sync::Arc};

use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, DictionaryArray, FixedSizeBinaryArray, FixedSizeListArray,
    Int32Array, LargeListArray, LargeStringArray, ListArray, MapArray, NullArray, PrimitiveArray,
    RecordBatch, RecordBatchOptions, RunArray, StringArray, StringViewArray, StructArray,
    builder::{BinaryViewBuilder, ListBuilder, MapBuilder, StringBuilder, StringViewBuilder, StructBuilder},
    types::*,
};
use arrow_buffer::{Buffer, OffsetBuffer, i256};
use arrow_data::ArrayData;
use arrow_schema::{Field, Fields, Schema};
use mobula_host::{Via, codec};
use mobula_store::{Bytes, Object};
use proptest::prelude::*;

use super::*;

fn encoded<T: codec::Data>(value: &T) -> Vec<u8> {
    codec::encode(value).unwrap().encoded.to_blob().unwrap().to_vec()
}

fn decoded(bytes: &[u8]) -> Result<(RecordBatch, Object), String> {
    let object = Object::parse(Bytes::from_slice(bytes)).map_err(|error| error.to_string())?;
    let batch: Batch = codec::decode(&object, Via::Argument).map_err(|failure| failure.to_string())?;
    Ok((batch.0, object))
}

/// Every buffer, with those of children.
fn buffers(data: &ArrayData, seen: &mut dyn FnMut(&[u8])) {
    for buffer in data.buffers() {
        seen(buffer);
    }
    if let Some(nulls) = data.nulls() {
        seen(nulls.validity());
    }
    for child in data.child_data() {
        buffers(child, seen);
    }
}

/// It arrives as it was, and lies where the object does.
fn travels(batch: &RecordBatch) {
    let (received, object) = decoded(&encoded(&Batch(batch.clone()))).unwrap();
    assert_eq!(received, *batch);
    assert_eq!(received.schema(), batch.schema());
    let blob = object.blob().as_ptr_range();
    let mut count = 0;
    for column in received.columns() {
        buffers(&column.to_data(), &mut |buffer| {
            assert!(
                buffer.is_empty()
                    || (blob.contains(&buffer.as_ptr()) && buffer.as_ptr_range().end <= blob.end)
            );
            count += usize::from(!buffer.is_empty());
        });
    }
    assert!(
        count > 0 || batch.get_array_memory_size() == 0 || batch.num_rows() == 0 || object.buffers() == 0
    );
}

fn of(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn primitive<T: ArrowPrimitiveType>(values: [T::Native; 3]) -> ArrayRef {
    let [a, b, c] = values;
    Arc::new(PrimitiveArray::<T>::from_iter([Some(a), None, Some(b), Some(c), None]))
}

fn numbers() -> RecordBatch {
    of(vec![
        ("i8", primitive::<Int8Type>([-1, 0, 1])),
        ("i16", primitive::<Int16Type>([-1, 0, 1])),
        ("i32", primitive::<Int32Type>([-1, 0, 1])),
        ("i64", primitive::<Int64Type>([i64::MIN, 0, 1])),
        ("u8", primitive::<UInt8Type>([9, 0, 1])),
        ("u16", primitive::<UInt16Type>([9, 0, 1])),
        ("u32", primitive::<UInt32Type>([9, 0, 1])),
        ("u64", primitive::<UInt64Type>([u64::MAX, 0, 1])),
        ("f16", primitive::<Float16Type>([half::f16::ONE, half::f16::NEG_ONE, half::f16::MAX])),
        ("f32", primitive::<Float32Type>([-1.5, 0.0, 1.0])),
        ("f64", primitive::<Float64Type>([-1.5, 0.0, 1.0])),
        ("date32", primitive::<Date32Type>([1, 2, 3])),
        ("date64", primitive::<Date64Type>([0, 86_400_000, 172_800_000])),
        ("time32", primitive::<Time32MillisecondType>([1, 2, 3])),
        ("time64", primitive::<Time64NanosecondType>([1, 2, 3])),
        ("timestamp", primitive::<TimestampNanosecondType>([1, 2, 3])),
        (
            "zoned",
            Arc::new(
                PrimitiveArray::<TimestampSecondType>::from(vec![5, 4, 3, 2, 1]).with_timezone("+01:30"),
            ),
        ),
        ("duration", primitive::<DurationMicrosecondType>([1, 2, 3])),
        ("interval", primitive::<IntervalYearMonthType>([1, 2, 3])),
        ("d32", primitive::<Decimal32Type>([1, 2, 3])),
        ("d64", primitive::<Decimal64Type>([1, 2, 3])),
        ("d128", primitive::<Decimal128Type>([1, -2, 3])),
        ("d256", primitive::<Decimal256Type>([i256::ONE, i256::ZERO, i256::MINUS_ONE])),
        ("bool", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true), Some(true)]))),
        ("null", Arc::new(NullArray::new(5))),
    ])
}

const WORDS: [Option<&str>; 5] =
    [Some("a"), None, Some("a longer word than twelve bytes"), Some(""), Some("ü")];

fn words() -> RecordBatch {
    let mut views = BinaryViewBuilder::new();
    WORDS.iter().for_each(|word| views.append_option(*word));
    of(vec![
        ("utf8", Arc::new(StringArray::from_iter(WORDS))),
        ("large", Arc::new(LargeStringArray::from_iter(WORDS))),
        ("view", Arc::new(StringViewArray::from_iter(WORDS))),
        ("binary", Arc::new(BinaryArray::from_iter(WORDS))),
        ("binary_view", Arc::new(views.finish())),
        (
            "fixed",
            Arc::new(
                FixedSizeBinaryArray::try_from_iter([[1u8, 2], [3, 4], [5, 6], [7, 8], [9, 0]].iter())
                    .unwrap(),
            ),
        ),
        ("dictionary", Arc::new(WORDS.into_iter().collect::<DictionaryArray<Int16Type>>())),
    ])
}

fn nested() -> RecordBatch {
    let numbers = |at: i32| (0..at).map(|number| (number % 3 != 2).then_some(number)).collect::<Vec<_>>();
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([
        Some(numbers(3)),
        None,
        Some(numbers(0)),
        Some(numbers(7)),
        Some(numbers(1)),
    ]);
    let large = LargeListArray::from_iter_primitive::<Int32Type, _, _>((0..5).map(|at| Some(numbers(at))));
    let fixed = FixedSizeListArray::from_iter_primitive::<Int32Type, _, _>(
        (0..5).map(|at| (at != 2).then(|| vec![Some(at), None])),
        2,
    );
    let structs = StructArray::try_new(
        Fields::from(vec![
            Field::new("x", DataType::Int32, true),
            Field::new("l", lists.data_type().clone(), true),
        ]),
        vec![Arc::new(Int32Array::from(vec![1, 2, 3, 4, 5])), Arc::new(lists.clone())],
        Some(vec![true, true, false, true, false].into()),
    )
    .unwrap();
    let of_structs = ListArray::new(
        Arc::new(Field::new("item", structs.data_type().clone(), true)),
        OffsetBuffer::from_lengths([2, 0, 1, 1, 1]),
        Arc::new(structs.clone()),
        None,
    );
    let mut maps = MapBuilder::new(None, StringBuilder::new(), ListBuilder::new(StringViewBuilder::new()));
    for at in 0..5 {
        for key in 0..at {
            maps.keys().append_value(format!("key {key}"));
            maps.values().append_value([Some("some value of that key"), None]);
        }
        maps.append(at != 3).unwrap();
    }
    let maps: MapArray = maps.finish();
    of(vec![
        ("list", Arc::new(lists)),
        ("large", Arc::new(large)),
        ("fixed", Arc::new(fixed)),
        ("struct", Arc::new(structs)),
        ("structs", Arc::new(of_structs)),
        ("map", Arc::new(maps)),
    ])
}

#[test]
fn all_types_travel_and_lie_where_the_object_does() {
    for batch in [numbers(), words(), nested()] {
        travels(&batch);
        // Parts of it begin in the midst of bytes, and of what offsets name.
        for (from, len) in [(0, 4), (1, 3), (1, 4), (3, 2), (2, 0)] {
            travels(&batch.slice(from, len));
        }
    }
    let none = RecordBatchOptions::new().with_row_count(Some(7));
    let schema = Arc::new(Schema::empty());
    travels(&RecordBatch::try_new_with_options(schema, Vec::new(), &none).unwrap());
    let empty: [(&str, ArrayRef); 2] = [
        ("words", Arc::new(StringArray::new_null(0))),
        ("structs", Arc::new(StructBuilder::from_fields(Fields::empty(), 0).finish())),
    ];
    travels(&of(empty.into()));
}

#[test]
fn fields_keep_what_they_say() {
    let field = Field::new("words", numbers().column(2).data_type().clone(), true)
        .with_metadata([("unit", "metre"), ("", "")]);
    let ordered =
        Field::new_dictionary("sizes", DataType::UInt8, DataType::Utf8, false).with_dict_is_ordered(true);
    let sizes: DictionaryArray<UInt8Type> = ["s", "m", "s", "l", "m"].into_iter().collect();
    let schema = Schema::new(vec![field, ordered]).with_metadata([("of", "us")]);
    let columns: Vec<ArrayRef> = vec![Arc::clone(numbers().column(2)), Arc::new(sizes)];
    travels(&RecordBatch::try_new(Arc::new(schema), columns).unwrap());
}

#[test]
fn a_part_takes_no_more_than_itself() {
    let words: Vec<_> = (0..10_000).map(|at| format!("a word of some length, {at}")).collect();
    let lists =
        ListArray::from_iter_primitive::<Int32Type, _, _>((0..10_000).map(|at| Some(vec![Some(at); 10])));
    let mut views = BinaryViewBuilder::new();
    words.iter().enumerate().for_each(|(at, word)| views.append_option((at % 3 != 0).then_some(word)));
    let batch = of(vec![
        ("lists", Arc::new(lists) as ArrayRef),
        ("text_views", Arc::new(StringViewArray::from_iter_values(&words))),
        ("byte_views", Arc::new(views.finish())),
        ("words", Arc::new(StringArray::from_iter_values(words))),
    ]);
    let slice = batch.slice(5000, 10);
    let part = encoded(&Batch(slice.clone()));
    assert!(part.len() < 4000, "{} bytes", part.len());
    assert_eq!(decoded(&part).unwrap().0, slice);
    assert!(encoded(&Batch(batch)).len() > 1_000_000);
}

/// The buffers of views are copied only where that saves more than half of them.
#[test]
fn views_of_most_of_their_buffers_are_not_copied() {
    let words: Vec<_> = (0..1000).map(|at| format!("a word of some length, {at:04}")).collect();
    let all = StringViewArray::from_iter_values(&words);
    let data = |array: &StringViewArray| write::views::<StringViewType>(&array.to_data());
    let addresses = |buffers: &[Buffer]| buffers.iter().map(|buffer| buffer.as_ptr()).collect::<Vec<_>>();
    for (rows, copied) in [(1000, false), (501, false), (499, true), (0, true)] {
        let buffers = data(&all.slice(1000 - rows, rows));
        assert_eq!(addresses(&buffers[1..]) != addresses(all.data_buffers()), copied, "{rows} rows");
        let bytes: usize = buffers[1..].iter().map(Buffer::len).sum();
        assert_eq!(bytes, if copied { rows } else { 1000 } * words[0].len(), "{rows} rows");
    }
}

#[test]
fn what_cannot_travel_is_named() {
    let failure = |array: ArrayRef| codec::encode(&Batch(of(vec![("x", array)]))).err().unwrap().to_string();
    let runs =
        RunArray::<Int32Type>::try_new(&Int32Array::from(vec![2, 5]), &Int32Array::from(vec![1, 2])).unwrap();
    let text = failure(Arc::new(runs));
    assert!(text.contains("RunEndEncoded") && text.contains("cannot travel"), "{text}");
    let mut deep: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    for _ in 0..=DEPTH_MAX {
        let field = Arc::new(Field::new("item", deep.data_type().clone(), true));
        deep = Arc::new(ListArray::new(field, OffsetBuffer::from_lengths([1]), deep, None));
    }
    assert!(failure(deep).contains("64 deep"));
}

/// A [`Meta`] and buffers that nobody checked.
struct Forged(fn() -> Meta, Vec<Vec<u8>>);

impl Archive for Forged {
    type Archived = ArchivedMeta;
    type Resolver = BatchResolver;

    fn resolve(&self, resolver: Self::Resolver, out: Place<Self::Archived>) {
        resolver.meta.resolve(resolver.inner, out);
    }
}

impl<S> Serialize<S> for Forged
where
    S: Fallible + rkyv::ser::Allocator + rkyv::ser::Writer + ?Sized,
    S::Error: Source,
{
    fn serialize(&self, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        for buffer in &self.1 {
            codec::collect_buffer(Bytes::from_slice(buffer)).map_err(S::Error::new)?;
        }
        let meta = self.0();
        let inner = meta.serialize(serializer)?;
        Ok(BatchResolver { meta, inner })
    }
}

impl<D> Deserialize<Forged, D> for ArchivedMeta
where
    D: Fallible + ?Sized,
    D::Error: Source,
{
    fn deserialize(&self, _: &mut D) -> Result<Forged, D::Error> {
        Ok(Forged(|| Meta { rows: 0, columns: 0, metadata: Vec::new(), nodes: Vec::new() }, Vec::new()))
    }
}

fn one(kind: Kind, len: u64, buffers: Vec<u32>, children: u32) -> Node {
    Node {
        name: "x".to_owned(),
        nullable: true,
        metadata: Vec::new(),
        kind,
        len,
        nulls: None,
        buffers,
        children,
    }
}

fn leaf(text: &str, len: u64, buffers: Vec<u32>) -> Node {
    one(Kind::Leaf(text.to_owned()), len, buffers, 0)
}

fn table(rows: u64, nodes: Vec<Node>) -> Meta {
    Meta { rows, columns: 1, metadata: Vec::new(), nodes }
}

#[test]
fn what_does_not_fit_together_is_an_error() {
    let metas: [fn() -> Meta; 28] = [
        || table(1, Vec::new()),
        || Meta { columns: u32::MAX, ..table(1, vec![leaf("Int8", 1, vec![0])]) },
        || Meta { columns: 0, ..table(1, vec![leaf("Int8", 1, vec![0])]) },
        || table(2, vec![leaf("Int8", 1, vec![0])]),
        || table(1, vec![leaf("Int8", 1, vec![])]),
        || table(1, vec![leaf("Int8", 1, vec![7])]),
        || table(1, vec![leaf("Int8", 1, vec![0, 0])]),
        || table(u64::MAX, vec![leaf("Int64", u64::MAX, vec![0])]),
        || table(u64::MAX, vec![leaf("Utf8", u64::MAX, vec![0, 0])]),
        || table(1 << 40, vec![leaf("Boolean", 1 << 40, vec![0])]),
        || table(1, vec![leaf("Time32(ns)", 1, vec![0])]),
        || table(1, vec![leaf("FixedSizeBinary(-1)", 1, vec![0])]),
        || table(1, vec![leaf("List(Int8)", 1, vec![0])]),
        || table(1, vec![leaf("Dictionary(Int8, Utf8)", 1, vec![0])]),
        || table(1, vec![leaf("Nonsense(", 1, vec![0])]),
        || table(1, vec![leaf(&"List(".repeat(100), 1, vec![0])]),
        || table(1, vec![Node { nulls: Some(1), ..leaf("Int8", 60, vec![0]) }]),
        || table(60, vec![Node { nulls: Some(9), ..leaf("Int8", 60, vec![0]) }]),
        // Offsets that go back, or beyond what there is; text that is none.
        || table(3, vec![leaf("Utf8", 3, vec![2, 0])]),
        || table(1, vec![leaf("Utf8", 1, vec![3, 1])]),
        || table(1, vec![leaf("Utf8", 1, vec![4, 0])]),
        || table(4, vec![leaf("Utf8View", 4, vec![0])]),
        || table(1, vec![one(Kind::List, 1, vec![3], 0)]),
        || table(1, vec![one(Kind::FixedSizeList(i32::MAX), u64::MAX, vec![], 1), leaf("Null", 0, vec![])]),
        || table(1, vec![one(Kind::Map(false), 1, vec![3], 1), leaf("Int8", 64, vec![0])]),
        || {
            let key = Kind::Dictionary("Utf8".to_owned(), false);
            table(1, vec![one(key, 1, vec![0], 1), leaf("Int8", 1, vec![0])])
        },
        // Keys of values that are not there.
        || {
            let key = Kind::Dictionary("UInt8".to_owned(), false);
            table(60, vec![one(key, 60, vec![0], 1), leaf("Int8", 1, vec![0])])
        },
        || table(1, (0..100).map(|_| one(Kind::Struct, 1, vec![], 1)).collect()),
    ];
    let ints = |all: &[i32]| all.iter().flat_map(|one| one.to_le_bytes()).collect::<Vec<u8>>();
    for (at, meta) in metas.into_iter().enumerate() {
        let buffers =
            vec![vec![0xFF; 64], vec![0xFF; 4], ints(&[0, 9, 3, 4]), ints(&[0, 4]), ints(&[0, 1000])];
        let error = decoded(&encoded(&Forged(meta, buffers))).expect_err(&format!("case {at} was accepted"));
        assert!(error.contains("could not be decoded"), "case {at}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever arrives, it is a batch that can be looked at, or an error.
    #[test]
    fn changed_bytes_are_a_batch_or_an_error(
        which in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let batch = [numbers, words, nested][which]();
        let mut bytes = encoded(&Batch(batch));
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(at) = cut {
            bytes.truncate(at.index(bytes.len()));
        }
        if let Ok((batch, _)) = decoded(&bytes) {
            let mut text = String::new();
            write!(text, "{batch:?}").unwrap();
        }
    }
}
