use ndarray::{Array, Axis, Slice};
use proptest::prelude::*;

use super::*;

#[test]
fn shapes_and_types_are_checked() {
    assert!(Tensor::from_vec(&[2, 2], vec![1f32; 3]).is_err());
    assert!(Tensor::from_vec(&[usize::MAX, 2], vec![1f32; 3]).is_err());
    let tensor = Tensor::from_vec(&[2, 3], vec![1f32, 2., 3., 4., 5., 6.]).unwrap();
    assert!(tensor.as_slice::<f64>().is_err());
    assert_eq!(tensor.view::<f32>().unwrap()[[1, 2]], 6.0);
    assert!(tensor.reshape(&[5]).is_err());
    assert_eq!(Tensor::from_bools(&[2], &[true, false]).unwrap().as_slice::<u8>().unwrap(), &[1, 0]);
}

#[test]
fn too_many_dimensions_are_refused_where_a_tensor_is_sent() {
    let of = |rank| Tensor::from_array(&ArrayD::<u8>::zeros(vec![1; rank]));
    codec::encode(&of(RANK_MAX)).unwrap();
    let error = codec::encode(&of(RANK_MAX + 1)).err().unwrap();
    assert_eq!(error.kind, FailureKind::Codec);
    assert!(error.message.contains("has 33 dimensions, more than 32: join some"), "{error}");
    codec::encode(&of(RANK_MAX + 1).reshape(&[1]).unwrap()).unwrap();
}

#[test]
fn parts_share_their_bytes() {
    let at = |tensor: &Tensor| tensor.bytes.as_ptr().addr();
    let tensor = Tensor::from_vec(&[2, 3], vec![1u16, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(at(&tensor.reshape(&[6]).unwrap()), at(&tensor));
    let row = tensor.select(0, 1).unwrap();
    assert_eq!((at(&row), row.as_slice::<u16>().unwrap()), (at(&tensor) + 6, &[4, 5, 6][..]));
    let column = tensor.select(1, 2).unwrap();
    assert_eq!((at(&column), column.strides(), column.is_contiguous()), (at(&tensor) + 4, &[3][..], false));
    assert_eq!(column, Tensor::from_vec(&[2], vec![3u16, 6]).unwrap());
    let turned = tensor.transpose(0, 1).unwrap();
    assert_eq!(at(&turned), at(&tensor));
    assert_eq!(turned.reshape(&[6]).unwrap().as_slice::<u16>().unwrap(), [1, 4, 2, 5, 3, 6]);
}

#[test]
fn what_is_not_there_is_an_error_that_says_so() {
    let tensor = Tensor::from_vec(&[2, 3], vec![0i64; 6]).unwrap();
    let said = |result: Result<Tensor>| result.unwrap_err().to_string();
    assert!(said(tensor.slice(1, 2..4)).contains("2..4 is not within dimension 1"));
    let (after, before) = (3, 2);
    assert!(said(tensor.slice(1, after..before)).contains("3..2"));
    assert!(said(tensor.slice(1, ..=usize::MAX)).contains("largest number"));
    assert!(said(tensor.slice(2, ..)).contains("no dimension 2"));
    assert!(said(tensor.select(0, 2)).contains("2..3 is not within dimension 0"));
    assert!(said(tensor.permute(&[0, 0])).contains("[0, 0]"));
    assert!(said(tensor.permute(&[0])).contains("each dimension"));
    assert!(said(tensor.transpose(0, 2)).contains("no dimension 2"));
    let error = tensor.transpose(0, 1).unwrap().as_slice::<i64>().unwrap_err().to_string();
    assert!(error.contains("strides [1, 3]") && error.contains("call `contiguous`"), "{error}");
    let none = tensor.slice(0, 1..1).unwrap();
    assert_eq!((none.len(), none.is_contiguous(), none.as_slice::<i64>().unwrap().len()), (0, true, 0));
    assert_eq!(none.transpose(0, 1).unwrap().view::<i64>().unwrap().shape(), [3, 0]);
}

proptest! {
    /// Whatever is cut and turned in whatever order: it is what ndarray makes of the same.
    #[test]
    fn parts_are_those_of_an_array(
        shape in prop::collection::vec(0usize..5, 0..5),
        steps in prop::collection::vec((0u8..4, any::<usize>(), any::<usize>(), any::<usize>()), 0..8),
    ) {
        let count: usize = shape.iter().product();
        let values: Vec<u32> = (0..count as u32).collect();
        let mut array = Array::from_shape_vec(IxDyn(&shape), values.clone()).unwrap();
        let mut tensor = Tensor::from_vec(&shape, values).unwrap();
        for (what, a, b, c) in steps {
            let rank = tensor.shape().len();
            if rank == 0 {
                break;
            }
            let dim = a % rank;
            let extent = tensor.shape()[dim];
            match what {
                0 => {
                    let (from, to) = (b % (extent + 1), c % (extent + 1));
                    let (from, to) = (from.min(to), from.max(to));
                    tensor = tensor.slice(dim, from..to).unwrap();
                    array.slice_axis_inplace(Axis(dim), Slice::from(from..to));
                }
                1 if extent > 0 => {
                    tensor = tensor.select(dim, b % extent).unwrap();
                    array = array.index_axis_move(Axis(dim), b % extent);
                }
                2 => {
                    let order: Vec<usize> = (0..rank).map(|at| (at + b % rank) % rank).collect();
                    tensor = tensor.permute(&order).unwrap();
                    array = array.permuted_axes(order);
                }
                _ => {
                    tensor = tensor.transpose(dim, b % rank).unwrap();
                    array.swap_axes(dim, b % rank);
                }
            }
            prop_assert_eq!(tensor.view::<u32>().unwrap(), array.view());
        }
        let flat: Vec<u32> = array.iter().copied().collect();
        let contiguous = tensor.contiguous().unwrap();
        prop_assert_eq!(contiguous.as_slice::<u32>().unwrap(), &flat[..]);
        prop_assert_eq!(contiguous.bytes.len(), flat.len() * 4);
        prop_assert!(contiguous == tensor);
        prop_assert_eq!(tensor.to_array::<u32>().unwrap(), array);
    }
}
