//! What a call gives at once: a ref, several of them, or a stream.

use std::{array, sync::Arc};

use mobula_host::{
    codec::{self, Data, Results},
    core::Returns,
    runtime::Runtime,
};
use mobula_proto::{
    Failure, FailureKind, ObjectId, TaskId,
    peer::{ARGUMENTS_MAX, Window},
};
use smallvec::SmallVec;

use crate::{ObjectRef, ObjectStream, Options, Refused};

/// What a call gives at once.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not what a call gives",
    note = "`returns` is for functions that return a tuple, an array or a vector"
)]
pub trait Handle: Sized + Unpin {
    /// How many results the call has, under these options.
    #[doc(hidden)]
    fn returns(options: &Options) -> Result<Returns, Failure>;

    /// Takes over one reference on each of these results.
    #[doc(hidden)]
    fn adopt(runtime: &Arc<Runtime>, task: TaskId, returns: Returns) -> Self;

    /// Of a call that could not be submitted.
    #[doc(hidden)]
    fn failed(runtime: &Arc<Runtime>, failure: Failure) -> Self;

    /// Whether a call with such results gives this.
    #[doc(hidden)]
    fn is_of(returns: Returns) -> bool;

    /// The first object; `None` where there is none.
    #[doc(hidden)]
    fn first_object(&self) -> Option<(&Arc<Runtime>, ObjectId)>;

    /// The call behind this with its arguments, if an actor refused it since its inbox was full
    /// ([`crate::ErrorKind::Overloaded`]): to be submitted once more. `None` for every other call, for some of several
    /// refs, where the call was taken already, and in other processes than the one that made the call. Until it is taken,
    /// or the last ref to the failure is dropped, the arguments stay in this process. A program that submits it again
    /// without a pause, and so whenever it is refused, takes processor time from the actor for which it waits.
    fn take_refused(&self) -> Option<Refused<Self>> {
        let (runtime, object) = self.first_object()?;
        Refused::take(runtime, object)
    }
}

/// What a function with several results returns: a tuple of up to 12, an array, or a vector of as many values as
/// its caller asked for.
#[diagnostic::on_unimplemented(
    message = "the parts of `{Self}` cannot be returned one by one",
    note = "`returns` is for functions that return a tuple, an array or a vector of `mobula::Data`"
)]
pub trait Several: Sized {
    /// A ref to each.
    type Refs: Handle;

    /// Encodes each.
    #[doc(hidden)]
    fn encode(self) -> Result<Results, Failure>;
}

fn refuse_count(options: &Options, wanted: &str) -> Result<(), Failure> {
    match options.set().returns {
        None => Ok(()),
        Some(_) => Err(Failure::new(
            FailureKind::ReturnCount,
            format!(
                "`returns` says how many values of a vector there will be, and this function gives {wanted}"
            ),
        )),
    }
}

fn one<T>(runtime: &Arc<Runtime>, task: TaskId, index: usize) -> ObjectRef<T> {
    ObjectRef::adopt(runtime.clone(), task.object(index as u32))
}

fn first_of<T>(all: &[ObjectRef<T>]) -> Option<(&Arc<Runtime>, ObjectId)> {
    all.first().map(ObjectRef::origin)
}

fn one_failed<T>(runtime: &Arc<Runtime>, failure: Failure) -> ObjectRef<T> {
    ObjectRef::adopt(runtime.clone(), runtime.failed(failure))
}

impl<T> Handle for ObjectRef<T> {
    fn returns(options: &Options) -> Result<Returns, Failure> {
        refuse_count(options, "one").map(|()| Returns::One)
    }

    fn adopt(runtime: &Arc<Runtime>, task: TaskId, _: Returns) -> Self {
        one(runtime, task, 0)
    }

    fn failed(runtime: &Arc<Runtime>, failure: Failure) -> Self {
        one_failed(runtime, failure)
    }

    fn is_of(returns: Returns) -> bool {
        returns == Returns::One
    }

    fn first_object(&self) -> Option<(&Arc<Runtime>, ObjectId)> {
        Some(self.origin())
    }
}

impl<T> Handle for Vec<ObjectRef<T>> {
    fn returns(options: &Options) -> Result<Returns, Failure> {
        match options.set().returns {
            Some(count) if count as usize <= ARGUMENTS_MAX => Ok(Returns::Many(count)),
            Some(count) => Err(Failure::new(
                FailureKind::Limit,
                format!(
                    "a task returns at most {ARGUMENTS_MAX} values, not {count}: return a stream, or larger values"
                ),
            )),
            None => Err(Failure::new(
                FailureKind::ReturnCount,
                "nobody said how many values there will be: call it with `.options().returns(count)`",
            )),
        }
    }

    fn adopt(runtime: &Arc<Runtime>, task: TaskId, returns: Returns) -> Self {
        let Returns::Many(count) = returns else { return Self::new() };
        (0..count as usize).map(|index| one(runtime, task, index)).collect()
    }

    /// One ref, which says why there are no others.
    fn failed(runtime: &Arc<Runtime>, failure: Failure) -> Self {
        vec![one_failed(runtime, failure)]
    }

    fn is_of(returns: Returns) -> bool {
        matches!(returns, Returns::Many(_))
    }

    fn first_object(&self) -> Option<(&Arc<Runtime>, ObjectId)> {
        first_of(self)
    }
}

impl<T: Data> Several for Vec<T> {
    type Refs = Vec<ObjectRef<T>>;

    fn encode(self) -> Result<Results, Failure> {
        self.iter().map(codec::encode).collect()
    }
}

impl<T, const N: usize> Handle for [ObjectRef<T>; N] {
    fn returns(options: &Options) -> Result<Returns, Failure> {
        refuse_count(options, &N.to_string()).map(|()| Returns::Many(N as u32))
    }

    fn adopt(runtime: &Arc<Runtime>, task: TaskId, _: Returns) -> Self {
        array::from_fn(|index| one(runtime, task, index))
    }

    fn failed(runtime: &Arc<Runtime>, failure: Failure) -> Self {
        array::from_fn(|_| one_failed(runtime, failure.clone()))
    }

    fn is_of(returns: Returns) -> bool {
        returns == Returns::Many(N as u32)
    }

    fn first_object(&self) -> Option<(&Arc<Runtime>, ObjectId)> {
        first_of(self)
    }
}

impl<T: Data, const N: usize> Several for [T; N] {
    type Refs = [ObjectRef<T>; N];

    fn encode(self) -> Result<Results, Failure> {
        self.iter().map(codec::encode).collect()
    }
}

macro_rules! tuples {
    ($($count:literal: $($type:ident $at:tt),*;)*) => {$(
        impl<$($type),*> Handle for ($(ObjectRef<$type>,)*) {
            fn returns(options: &Options) -> Result<Returns, Failure> {
                refuse_count(options, stringify!($count)).map(|()| Returns::Many($count))
            }

            fn adopt(runtime: &Arc<Runtime>, task: TaskId, _: Returns) -> Self {
                ($(one::<$type>(runtime, task, $at),)*)
            }

            fn failed(runtime: &Arc<Runtime>, failure: Failure) -> Self {
                ($(one_failed::<$type>(runtime, failure.clone()),)*)
            }

            fn is_of(returns: Returns) -> bool {
                returns == Returns::Many($count)
            }

            fn first_object(&self) -> Option<(&Arc<Runtime>, ObjectId)> {
                Some(self.0.origin())
            }
        }

        impl<$($type: Data),*> Several for ($($type,)*) {
            type Refs = ($(ObjectRef<$type>,)*);

            fn encode(self) -> Result<Results, Failure> {
                let mut all = SmallVec::with_capacity($count);
                $(all.push(codec::encode(&self.$at)?);)*
                Ok(all)
            }
        }
    )*};
}

tuples! {
    1: A 0;
    2: A 0, B 1;
    3: A 0, B 1, C 2;
    4: A 0, B 1, C 2, D 3;
    5: A 0, B 1, C 2, D 3, E 4;
    6: A 0, B 1, C 2, D 3, E 4, F 5;
    7: A 0, B 1, C 2, D 3, E 4, F 5, G 6;
    8: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7;
    9: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8;
    10: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9;
    11: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10;
    12: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11;
}

impl<T> Handle for ObjectStream<T> {
    fn returns(options: &Options) -> Result<Returns, Failure> {
        refuse_count(options, "a stream")?;
        let Window { items, bytes } = options.set().buffer.0;
        // One item is always allowed, or nothing would move.
        Ok(Returns::Stream(Window { items: items.max(1), bytes: bytes.max(1) }))
    }

    fn adopt(runtime: &Arc<Runtime>, task: TaskId, _: Returns) -> Self {
        Self::of(one(runtime, task, 0))
    }

    fn failed(runtime: &Arc<Runtime>, failure: Failure) -> Self {
        Self::of(one_failed(runtime, failure))
    }

    fn is_of(returns: Returns) -> bool {
        matches!(returns, Returns::Stream(_))
    }

    fn first_object(&self) -> Option<(&Arc<Runtime>, ObjectId)> {
        Some(self.call().origin())
    }
}
