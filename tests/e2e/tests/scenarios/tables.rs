//! Record batches of Apache Arrow, shared like tensors.

use std::sync::Arc;

use mobula::{
    NodeId, Result,
    arrow::{
        Batch,
        arrow_array::{
            Array, ArrayRef, Float64Array, RecordBatch, StringArray, cast::AsArray, types::Float64Type,
        },
    },
};
use mobula_e2e::{
    Env,
    env::{on, shared_place},
};

const ROWS: usize = 100_000;

#[mobula::task]
fn table(rows: usize) -> Batch {
    let values = Float64Array::from_iter((0..rows).map(|at| (at % 7 != 0).then_some(at as f64)));
    let names = StringArray::from_iter_values((0..rows).map(|at| format!("row {at}")));
    let columns: [(&str, ArrayRef); 2] = [("value", Arc::new(values)), ("name", Arc::new(names))];
    Batch(RecordBatch::try_from_iter(columns).unwrap())
}

/// The sum of the values; all buffers must lie in shared memory, at multiples of 64 bytes.
fn sum_in_place(batch: &Batch) -> f64 {
    for column in batch.columns() {
        let data = column.to_data();
        for buffer in data.buffers() {
            assert!(shared_place(buffer).is_some(), "a column was copied");
            assert!(buffer.as_ptr().addr().is_multiple_of(64));
        }
        if let Some(nulls) = data.nulls() {
            assert!(shared_place(nulls.validity()).is_some(), "validity was copied");
        }
    }
    let names = batch.column(1).as_string::<i32>();
    assert_eq!(names.value(names.len() - 1), format!("row {}", ROWS - 1));
    batch.column(0).as_primitive::<Float64Type>().iter().flatten().sum()
}

#[mobula::task]
fn sum(batch: Batch) -> f64 {
    sum_in_place(&batch)
}

/// A part of what it got.
#[mobula::task]
fn head(batch: Batch, rows: usize) -> Batch {
    Batch(batch.slice(0, rows))
}

pub async fn batches_are_read_where_they_lie(env: Env) -> Result<()> {
    let expected: f64 = (0..ROWS).filter(|at| at % 7 != 0).map(|at| at as f64).sum();
    let made = table.remote(ROWS);
    // On whatever node: where it was made, and where it comes to.
    for node in env.nodes().await? {
        let node: NodeId = node;
        assert_eq!(sum.options().strategy(on(node)).remote(&made).await?, expected);
    }
    let batch = (&made).await?;
    assert_eq!(sum_in_place(&batch), expected);
    // What was received can be put again, and passed on as a value.
    let again = mobula::put(&batch)?;
    assert_eq!(sum.remote(&again).await?, expected);
    let small = head.remote(&made, 10).await?;
    assert_eq!((small.num_rows(), small.column(0).null_count()), (10, 2));
    assert_eq!(head.remote(small.clone(), 10).await?, small);
    // The arrays keep their object.
    drop((made, again));
    let column = Arc::clone(batch.column(0));
    drop(batch);
    assert_eq!(column.as_primitive::<Float64Type>().iter().flatten().sum::<f64>(), expected);
    drop((column, small));
    env.stores_empty().await
}
