//! The handwritten digits, and the seeded generator that splits and shuffles them.

use std::io::Read;

use flate2::read::GzDecoder;
use ndarray::{Array2, ArrayView2, Axis, ShapeError};

/// Pixels of an image.
pub const PIXELS: usize = 64;
/// Labels, from 0.
pub const CLASSES: usize = 10;
/// The value of a full pixel in the file.
const PIXEL_MAX: u8 = 16;
/// One image in this many is kept for the test.
const TEST_ONE_IN: usize = 5;
/// Longest text that the file may unpack to, in bytes.
const TEXT_BYTES_MAX: u64 = 1 << 24;

/// `data/digits.csv.gz`; see the README beside it for where it comes from.
const FILE: &[u8] = include_bytes!("../../../data/digits.csv.gz");

/// Why the digits cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not gzip, or not text.
    #[error("the digits cannot be unpacked: {0}")]
    Unpack(#[from] std::io::Error),
    /// Not a row of 64 pixels and a label.
    #[error(
        "line {line} of the digits is not {PIXELS} numbers from 0 to {PIXEL_MAX} and a label from 0 to 9"
    )]
    Row {
        /// From 1.
        line: usize,
    },
    /// The rows do not make a matrix.
    #[error("the digits do not make a matrix: {0}")]
    Shape(#[from] ShapeError),
}

/// Labelled images.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// One row an image, from 0 to 1.
    pub pixels: Array2<f32>,
    /// What each shows.
    pub labels: Vec<u8>,
}

impl Images {
    /// Those rows, in that order.
    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            pixels: self.pixels.select(Axis(0), rows),
            labels: rows.iter().filter_map(|row| self.labels.get(*row).copied()).collect(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Parts of equal size, give or take one: image `i` goes to part `i % count`.
    pub fn deal(&self, count: usize) -> Vec<Self> {
        (0..count).map(|part| self.select(&(part..self.len()).step_by(count).collect::<Vec<_>>())).collect()
    }
}

/// All of the digits, in the order of the file.
pub fn load() -> Result<Images, Error> {
    let mut text = String::new();
    GzDecoder::new(FILE).take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    parse(&text)
}

fn parse(text: &str) -> Result<Images, Error> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (at, line) in text.lines().enumerate() {
        let wrong = || Error::Row { line: at + 1 };
        let (row, label) = line.rsplit_once(',').ok_or_else(wrong)?;
        let before = pixels.len();
        for pixel in row.split(',') {
            let pixel: u8 = pixel.parse().ok().filter(|pixel| *pixel <= PIXEL_MAX).ok_or_else(wrong)?;
            pixels.push(f32::from(pixel) / f32::from(PIXEL_MAX));
        }
        if pixels.len() - before != PIXELS {
            return Err(wrong());
        }
        labels.push(label.parse().ok().filter(|label| usize::from(*label) < CLASSES).ok_or_else(wrong)?);
    }
    Ok(Images { pixels: Array2::from_shape_vec((labels.len(), PIXELS), pixels)?, labels })
}

/// Four fifths to learn from and one fifth to test with, chosen by the seed.
pub fn split(all: &Images, random: &mut Random) -> (Images, Images) {
    let order: Vec<usize> = random.order(all.len()).into_iter().map(|row| row as usize).collect();
    let (test, train) = order.split_at(all.len() / TEST_ONE_IN);
    (all.select(train), all.select(test))
}

/// The rows of a batch, copied out of a shard.
pub fn gather(pixels: ArrayView2<'_, f32>, labels: &[u8], rows: &[u32]) -> Images {
    let rows: Vec<usize> = rows.iter().map(|row| *row as usize).filter(|row| *row < labels.len()).collect();
    Images {
        pixels: pixels.select(Axis(0), &rows),
        labels: rows.iter().filter_map(|row| labels.get(*row).copied()).collect(),
    }
}

/// SplitMix64: the same numbers from the same seed, on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From -1 to 1, evenly.
    pub fn symmetric(&mut self) -> f32 {
        // 24 bits fill the mantissa of an f32, so every step of the conversion is exact.
        const STEPS: f32 = (1u32 << 23) as f32;
        (self.next() >> 40) as f32 / STEPS - 1.0
    }

    /// The numbers from 0 up to `count`, in a random order.
    pub fn order(&mut self, count: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        for at in (1..order.len()).rev() {
            let other = (self.next() % (at as u64 + 1)) as usize;
            order.swap(at, other);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_holds_what_its_readme_says() {
        let all = load().unwrap();
        assert_eq!(all.len(), 1797);
        assert_eq!(all.pixels.dim(), (1797, PIXELS));
        assert!(all.pixels.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        assert_eq!(&all.labels[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(all.pixels[[0, 2]], 5.0 / 16.0);
    }

    #[test]
    fn a_broken_row_is_named() {
        let good = format!("{}7\n", "0,".repeat(PIXELS));
        for bad in [
            format!("{}7", "0,".repeat(PIXELS - 1)),
            format!("{}10", "0,".repeat(PIXELS)),
            format!("{}7", "17,".repeat(PIXELS)),
            "hello".to_owned(),
        ] {
            let error = parse(&format!("{good}{bad}\n")).unwrap_err();
            assert!(matches!(error, Error::Row { line: 2 }), "{bad}: {error}");
        }
    }

    #[test]
    fn the_split_is_by_seed_and_loses_nothing() {
        let all = load().unwrap();
        let (train, test) = split(&all, &mut Random::new(1));
        assert_eq!((train.len(), test.len()), (1438, 359));
        assert_eq!(split(&all, &mut Random::new(1)), (train.clone(), test.clone()));
        assert_ne!(split(&all, &mut Random::new(2)).0, train);
        let sum = |images: &Images| images.labels.iter().map(|label| u32::from(*label)).sum::<u32>();
        assert_eq!(sum(&train) + sum(&test), sum(&all));
        let shards = train.deal(4);
        assert_eq!(shards.iter().map(Images::len).collect::<Vec<_>>(), [360, 360, 359, 359]);
        assert_eq!(shards[1].labels[0], train.labels[1]);
    }

    #[test]
    fn random_numbers_are_even() {
        let mut random = Random::new(7);
        let numbers: Vec<f32> = (0..10_000).map(|_| random.symmetric()).collect();
        assert!(numbers.iter().all(|number| (-1.0..1.0).contains(number)));
        assert!(numbers.iter().sum::<f32>().abs() / 10_000.0 < 0.02);
    }
}
