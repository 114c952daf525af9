//! Words, chunks of text, and tables of counts. Text is bytes: nothing here asks for UTF-8.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read},
};

/// Longest stretch without white space that is still read as a word, in bytes. A chunk grows to this at most.
const WORD_BYTES_MAX: usize = 64 << 20;

/// What `tr`'s `[:space:]` matches where `LC_ALL=C`.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// The words of a text.
pub fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| is_space(*byte)).filter(|word| !word.is_empty())
}

/// Cuts what it reads into chunks that end where a line does, or at least a word.
pub struct Chunks<R> {
    source: R,
    /// Wanted size of a chunk, in bytes.
    bytes: usize,
    /// Read, and not yet given out: the beginning of the next chunk.
    rest: Vec<u8>,
}

impl<R: Read> Chunks<R> {
    /// Chunks of up to this many bytes, unless a single word is longer.
    pub fn new(source: R, bytes: usize) -> Self {
        Self { source, bytes: bytes.max(1), rest: Vec::new() }
    }

    /// The next one; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = std::mem::take(&mut self.rest);
        let mut wanted = self.bytes;
        loop {
            let missing = wanted.saturating_sub(chunk.len());
            let read = self.source.by_ref().take(missing as u64).read_to_end(&mut chunk)?;
            if read < missing {
                return Ok((!chunk.is_empty()).then_some(chunk));
            }
            let line = chunk.iter().rposition(|byte| *byte == b'\n');
            if let Some(end) = line.or_else(|| chunk.iter().rposition(|byte| is_space(*byte))) {
                self.rest = chunk.split_off(end + 1);
                return Ok(Some(chunk));
            }
            if wanted >= WORD_BYTES_MAX {
                let message = format!("there is no white space in {} bytes: is this a text?", chunk.len());
                return Err(io::Error::new(ErrorKind::InvalidData, message));
            }
            wanted = wanted.saturating_mul(2).min(WORD_BYTES_MAX);
        }
    }
}

/// A word's part among `parts`, the same in every process (FNV-1a).
fn part(word: &[u8], parts: usize) -> usize {
    let hash = word.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The upper half: the lowest bits of this hash depend on the lowest bits of the bytes alone.
    ((hash >> 32) % parts.max(1) as u64) as usize
}

/// Words with how often each occurs, sorted by word.
///
/// Three plain vectors rather than one of pairs: each travels as one block, however many words there are.
#[mobula::data]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The words, end to end.
    letters: Vec<u8>,
    /// Where each word ends in `letters`.
    ends: Vec<u64>,
    /// How often each word occurs.
    counts: Vec<u64>,
}

impl Counts {
    fn of(mut table: Vec<(&[u8], u64)>) -> Self {
        table.sort_unstable();
        let mut counts = Self::default();
        for (word, count) in table {
            counts.letters.extend_from_slice(word);
            counts.ends.push(counts.letters.len() as u64);
            counts.counts.push(count);
        }
        counts
    }

    /// Each word with its count, in the order of the words' bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|end| *end as usize));
        let words = starts.zip(&self.ends).map(|(start, end)| {
            // Never out of range in what `of` made.
            self.letters.get(start..*end as usize).unwrap_or_default()
        });
        words.zip(self.counts.iter().copied())
    }

    /// How many different words there are.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// How many words there are.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Only the most frequent.
    pub fn top(&self, count: usize) -> Self {
        Self::of(most_frequent(self.iter().collect(), count))
    }
}

/// Counts the words of a text, each in the part of the table that is the word's.
pub fn count(text: &[u8], parts: usize) -> Vec<Counts> {
    let mut table: HashMap<&[u8], u64> = HashMap::new();
    for word in words(text) {
        *table.entry(word).or_default() += 1;
    }
    let mut split: Vec<Vec<(&[u8], u64)>> = vec![Vec::new(); parts.max(1)];
    for (word, count) in table {
        if let Some(list) = split.get_mut(part(word, parts)) {
            list.push((word, count));
        }
    }
    split.into_iter().map(Counts::of).collect()
}

/// Adds tables up.
pub fn merge(tables: &[Counts]) -> Counts {
    let mut sums: HashMap<&[u8], u64> = HashMap::new();
    for (word, count) in tables.iter().flat_map(Counts::iter) {
        *sums.entry(word).or_default() += count;
    }
    Counts::of(sums.into_iter().collect())
}

/// The most frequent first; among equals the order of the words' bytes.
pub fn most_frequent(mut table: Vec<(&[u8], u64)>, count: usize) -> Vec<(&[u8], u64)> {
    table.sort_unstable_by(|left, right| right.1.cmp(&left.1).then(left.0.cmp(right.0)));
    table.truncate(count);
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pairs(counts: &Counts) -> Vec<(String, u64)> {
        counts.iter().map(|(word, count)| (String::from_utf8_lossy(word).into_owned(), count)).collect()
    }

    #[test]
    fn words_are_what_lies_between_white_space() {
        let text = b"\n a b\tA\x0bb,\x0c\xff\r\n\0 \n";
        let expected: [&[u8]; 6] = [b"a", b"b", b"A", b"b,", b"\xff", b"\0"];
        assert_eq!(words(text).collect::<Vec<_>>(), expected);
        assert_eq!(words(b"").count() + words(b" \n").count(), 0);
    }

    #[test]
    fn chunks_end_at_lines_or_else_at_words() {
        let mut chunks = Chunks::new(&b"one two\nthree\nfour five-and-six-and seven"[..], 10);
        let mut all = Vec::new();
        while let Some(chunk) = chunks.next().unwrap() {
            all.push(String::from_utf8(chunk).unwrap());
        }
        assert_eq!(all, ["one two\n", "three\n", "four ", "five-and-six-and ", "seven"]);
        assert_eq!(Chunks::new(&b""[..], 10).next().unwrap(), None);
    }

    #[test]
    fn what_is_no_text_is_refused_before_it_fills_memory() {
        let error = Chunks::new(io::repeat(b'x'), 1 << 20).next().unwrap_err();
        assert!(error.to_string().contains("is this a text?"), "{error}");
    }

    #[test]
    fn tables_are_sorted_and_add_up() {
        let parts = count(b"b a b c", 1);
        assert_eq!(pairs(&parts[0]), [("a".into(), 1), ("b".into(), 2), ("c".into(), 1)]);
        let sum = merge(&[parts[0].clone(), count(b"c d", 1).remove(0)]);
        assert_eq!(pairs(&sum), [("a".into(), 1), ("b".into(), 2), ("c".into(), 2), ("d".into(), 1)]);
        assert_eq!((sum.len(), sum.total()), (4, 6));
        assert_eq!(pairs(&sum.top(2)), [("b".into(), 2), ("c".into(), 2)]);
        assert_eq!(sum.top(0), Counts::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn chunks_and_parts_lose_no_word(
            text in prop::collection::vec(prop::sample::select(b"ab \n\xff".to_vec()), 0..200),
            bytes in 1usize..20,
            parts in 1usize..5,
        ) {
            let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            for word in words(&text) {
                *expected.entry(word.to_vec()).or_default() += 1;
            }
            let mut by_part = vec![Vec::new(); parts];
            let mut chunks = Chunks::new(&text[..], bytes);
            let mut joined = Vec::new();
            while let Some(chunk) = chunks.next().unwrap() {
                for (list, counts) in by_part.iter_mut().zip(count(&chunk, parts)) {
                    list.push(counts);
                }
                joined.extend(chunk);
            }
            prop_assert_eq!(joined, text.clone());
            let merged: Vec<Counts> = by_part.iter().map(|list| merge(list)).collect();
            let found: Vec<_> = merged.iter().flat_map(Counts::iter).map(|(w, c)| (w.to_vec(), c)).collect();
            prop_assert_eq!(found.len(), expected.len());
            prop_assert_eq!(found.into_iter().collect::<BTreeMap<_, _>>(), expected);
        }
    }
}
