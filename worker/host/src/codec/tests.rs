#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use mobula_proto::FailureKind;
use rkyv::{
    Place,
    rancor::{Fallible, Source as Trouble},
    rend::u32_le,
};

use super::*;
use crate::guarded;

/// A value with one buffer, whose own code may panic once that is encoded or decoded.
#[derive(Debug)]
struct Noisy {
    buffer: Bytes,
    panics: bool,
}

impl Archive for Noisy {
    type Archived = u32_le;
    type Resolver = u32;

    fn resolve(&self, number: u32, out: Place<u32_le>) {
        number.resolve((), out);
    }
}

impl<S: Fallible<Error: Trouble> + ?Sized> Serialize<S> for Noisy {
    fn serialize(&self, _: &mut S) -> Result<u32, S::Error> {
        let number = collect_buffer(self.buffer.clone()).map_err(S::Error::new)?;
        assert!(!self.panics, "no words for it");
        Ok(number)
    }
}

impl<D: Fallible<Error: Trouble> + ?Sized> Deserialize<Noisy, D> for u32_le {
    fn deserialize(&self, _: &mut D) -> Result<Noisy, D::Error> {
        let buffer = receive_buffer(self.to_native()).map_err(D::Error::new)?;
        assert!(*buffer != *b"panic", "it says nothing");
        Ok(Noisy { buffer, panics: false })
    }
}

/// Bytes, and what is alive as long as they are.
fn noted(bytes: &[u8]) -> (Bytes, Arc<Bytes>) {
    struct Owner(Arc<Bytes>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let owned = Arc::new(Bytes::from_slice(bytes));
    (Bytes::from_owner(bytes::Bytes::from_owner(Owner(Arc::clone(&owned)))), owned)
}

fn panicked<T: std::fmt::Debug>(result: Result<T, Failure>, text: &str) {
    let failure = result.unwrap_err();
    assert!(failure.kind == FailureKind::Panicked && failure.message.contains(text), "{failure}");
}

fn is_outside() -> bool {
    matches!(collect_buffer(Bytes::new()), Err(Error::OutsideContext))
        && matches!(receive_buffer(0), Err(Error::OutsideContext))
}

#[test]
fn a_panic_within_a_value_leaves_nothing_on_the_thread() {
    let (buffer, owned) = noted(b"words");
    let loud = Noisy { buffer: buffer.clone(), panics: true };
    for _ in 0..2 {
        panicked(guarded::call(|| encode(&loud).map(drop)), "no words for it");
        assert!(is_outside());
    }
    drop((loud, buffer));
    assert_eq!(Arc::strong_count(&owned), 1, "the buffer is kept");

    let blob = |bytes: &[u8]| {
        let quiet = Noisy { buffer: Bytes::from_slice(bytes), panics: false };
        encode(&quiet).unwrap().encoded.to_blob().unwrap().to_vec()
    };
    let (bytes, owned) = noted(&blob(b"panic"));
    let object = Object::parse(bytes).unwrap();
    panicked(guarded::call(|| decode::<Noisy>(&object, Via::Argument)), "it says nothing");
    assert!(is_outside());
    drop(object);
    assert_eq!(Arc::strong_count(&owned), 1, "the object is kept");

    // What comes next on the thread is as ever.
    let object = Object::parse(Bytes::from_slice(&blob(b"words"))).unwrap();
    assert_eq!(&*decode::<Noisy>(&object, Via::Argument).unwrap().buffer, b"words");
}
