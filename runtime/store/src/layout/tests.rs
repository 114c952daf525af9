use proptest::prelude::*;

use super::*;

/// Too long to travel without a header.
const ARCHIVE: &[u8] = b"an archive of some length";

fn archive(bytes: &[u8]) -> AlignedVec {
    let mut front = AlignedVec::new();
    front.extend_from_slice(&[0; HEADER_BYTES]);
    front.extend_from_slice(bytes);
    front
}

fn bytes(encoded: &Encoded) -> Result<Bytes, Error> {
    Ok(Bytes::from_slice(&encoded.to_blob()?))
}

fn sample(lens: &[usize]) -> Encoded {
    let buffers = lens.iter().enumerate().map(|(i, len)| Bytes::from_vec(vec![i as u8 + 1; *len])).collect();
    Encoded::new(&mut archive(ARCHIVE), buffers)
}

#[track_caller]
fn check_round_trip(lens: &[usize]) {
    let encoded = sample(lens);
    let blob = bytes(&encoded).unwrap();
    assert_eq!(blob.len() as u64, encoded.len());
    // Written over what lay there before, it is the same: gaps are cleared.
    let mut dirty = vec![0xaa; blob.len()];
    encoded.write_into(&mut dirty).unwrap();
    assert_eq!(dirty, blob[..]);
    let object = Object::parse(blob.clone()).unwrap();
    assert_eq!(object.archive(), ARCHIVE);
    assert!(object.archive().as_ptr().addr().is_multiple_of(16));
    assert_eq!(object.buffers(), lens.len());
    for (i, len) in lens.iter().enumerate() {
        let buffer = object.buffer(i).unwrap();
        assert!(buffer.is_aligned_to(64));
        assert_eq!(buffer[..], vec![i as u8 + 1; *len]);
        assert!(blob.as_ptr_range().start <= buffer.as_ptr() && buffer.as_ptr() <= blob.as_ptr_range().end);
    }
    assert!(object.buffer(lens.len()).is_err());
}

#[test]
fn objects_survive_the_round_trip() {
    check_round_trip(&[]);
    check_round_trip(&[0]);
    check_round_trip(&[1]);
    check_round_trip(&[64, 0, 65, 1000, 0]);
    check_round_trip(&[3; 200]);
}

#[test]
fn a_small_archive_is_read_out_of_its_message() {
    for lens in [&[][..], &[5, 70]] {
        let blob = sample(lens).to_blob().unwrap();
        let object = Object::from_message(blob.clone()).unwrap();
        assert_eq!(object.archive(), ARCHIVE);
        assert_eq!(object.buffers(), lens.len());
        // Only buffers need more alignment than a message gives.
        assert_eq!(object.blob().as_ptr() == blob.as_ptr(), lens.is_empty());
    }
    assert!(Object::from_message(Blob::from_slice(&[0; HEADER_BYTES])).is_err());
}

#[test]
fn a_tiny_archive_goes_without_a_header() {
    for len in [0, 1, Blob::SMALL_BYTES_MAX, Blob::SMALL_BYTES_MAX + 1] {
        let content: Vec<u8> = (1..=len as u8).collect();
        let encoded = Encoded::new(&mut archive(&content), Vec::new());
        let header = if len <= Blob::SMALL_BYTES_MAX { 0 } else { HEADER_BYTES };
        assert_eq!(encoded.len(), (header + len) as u64);
        let blob = encoded.to_blob().unwrap();
        let mut written = vec![0; header + len];
        encoded.write_into(&mut written).unwrap();
        for object in [Object::from_message(blob), Object::parse(Bytes::from_slice(&written))] {
            let object = object.unwrap();
            assert_eq!((object.archive(), object.buffers()), (&content[..], 0));
            assert!(object.archive().as_ptr().addr().is_multiple_of(16));
            assert!(object.buffer(0).is_err());
        }
    }
    let moved = Bytes::from_slice(&[0; 20]).slice(8..16).unwrap();
    assert!(Object::parse(moved).unwrap_err().to_string().contains("aligned"));
}

#[test]
fn memory_of_a_small_archive_is_left_to_its_writer() {
    let mut front = archive(ARCHIVE);
    let at = front.as_ptr();
    assert_eq!(Encoded::new(&mut front, Vec::new()).len(), (HEADER_BYTES + ARCHIVE.len()) as u64);
    assert_eq!(front.as_ptr(), at);
    let mut front = archive(&[1; INLINE_BYTES_MAX]);
    let large = Encoded::new(&mut front, Vec::new());
    assert!(front.is_empty());
    let object = Object::parse(bytes(&large).unwrap()).unwrap();
    assert_eq!(object.archive(), [1; INLINE_BYTES_MAX]);
}

#[test]
fn a_target_of_another_size_is_refused() {
    let encoded = sample(&[10]);
    for len in [0, encoded.len() - 1, encoded.len() + 1] {
        let error = encoded.write_into(&mut vec![0; len as usize]).unwrap_err();
        assert!(matches!(error, Error::WrongSize { .. }), "{error}");
    }
}

#[test]
fn the_count_of_buffers_is_capped_on_both_sides() {
    let encoded = Encoded::new(&mut archive(b""), vec![Bytes::new(); BUFFERS_MAX + 1]);
    assert!(matches!(bytes(&encoded), Err(Error::TooManyBuffers { .. })));
    let mut blob = bytes(&sample(&[])).unwrap().to_vec();
    blob[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Object::parse(Bytes::from_slice(&blob)), Err(Error::TooManyBuffers { .. })));
}

#[test]
fn misaligned_blobs_are_refused() {
    let blob = bytes(&sample(&[10])).unwrap();
    let mut moved = vec![0; 16];
    moved.extend_from_slice(&blob);
    let moved = Bytes::from_slice(&moved).slice(16..).unwrap();
    let error = Object::parse(moved).unwrap_err();
    assert!(error.to_string().contains("aligned"), "{error}");
    // Without buffers 16 bytes are enough.
    let small = bytes(&sample(&[])).unwrap();
    let mut moved = vec![0; 16];
    moved.extend_from_slice(&small);
    assert!(Object::parse(Bytes::from_slice(&moved).slice(16..).unwrap()).is_ok());
}

/// Changes one number of the table or header and expects an error that mentions `text`.
#[track_caller]
fn check_refused(at: usize, value: u64, text: &str) {
    let mut blob = bytes(&sample(&[10, 100])).unwrap().to_vec();
    blob[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let error = Object::parse(Bytes::from_slice(&blob)).unwrap_err().to_string();
    assert!(error.contains(text), "{error}");
}

#[test]
fn malformed_objects_say_what_is_wrong() {
    check_refused(0, 0, "does not start");
    check_refused(8, u64::MAX, "archive");
    check_refused(8, 1 << 20, "archive");
    check_refused(16, 65, "not aligned");
    check_refused(16, 0, "outside");
    check_refused(16, u64::MAX - 63, "outside");
    check_refused(24, u64::MAX, "outside");
    check_refused(24, 1 << 40, "outside");
    // Shorter ones are archives alone.
    assert!(Object::parse(Bytes::from_slice(&[0; HEADER_BYTES])).is_err());
}

fn use_all(object: &Object) {
    let mut sum = object.archive().iter().map(|b| u64::from(*b)).sum::<u64>();
    for i in 0..object.buffers() {
        sum += object.buffer(i).unwrap().iter().map(|b| u64::from(*b)).sum::<u64>();
    }
    std::hint::black_box(sum);
}

proptest! {
    #[test]
    fn mutated_blobs_never_panic(
        lens in proptest::collection::vec(0usize..300, 0..6),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        head in proptest::collection::vec((0usize..112, any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        truncate: bool,
    ) {
        let mut blob = bytes(&sample(&lens)).unwrap().to_vec();
        for (at, to) in edits {
            let at = at.index(blob.len());
            blob[at] = to;
        }
        for (at, to) in head {
            if let Some(byte) = blob.get_mut(at) {
                *byte = to;
            }
        }
        if truncate {
            blob.truncate(cut.index(blob.len() + 1));
        }
        if let Ok(object) = Object::parse(Bytes::from_slice(&blob)) {
            use_all(&object);
        }
    }

    #[test]
    fn random_blobs_never_panic(mut blob in proptest::collection::vec(any::<u8>(), 0..400), magic: bool, few: bool) {
        if magic && blob.len() >= 16 {
            blob[..4].copy_from_slice(&MAGIC.to_le_bytes());
            if few {
                blob[5..8].fill(0);
                blob[9..16].fill(0);
            }
        }
        if let Ok(object) = Object::parse(Bytes::from_slice(&blob)) {
            use_all(&object);
        }
    }
}
