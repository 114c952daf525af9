//! A network of one hidden layer, as functions of one flat vector of parameters.
//!
//! The vector is what travels: weights and biases of the hidden layer, then those of the output layer, each matrix
//! row by row. A gradient has the same layout, so adding gradients and stepping are loops over two slices.

use ndarray::{
    Array2, ArrayView1, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, ShapeError, Zip,
    linalg::general_mat_mul,
};

use crate::data::Random;

/// The extents of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Numbers that go in.
    pub inputs: usize,
    /// Rectified units between.
    pub hidden: usize,
    /// Classes that come out.
    pub outputs: usize,
}

/// What a batch says about the parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradient {
    /// Summed over the batch, in the layout of the parameters.
    pub sum: Vec<f32>,
    /// The cross entropy, summed over the batch.
    pub loss: f32,
}

struct Layers<'a> {
    hidden_weights: ArrayView2<'a, f32>,
    hidden_biases: ArrayView1<'a, f32>,
    output_weights: ArrayView2<'a, f32>,
    output_biases: ArrayView1<'a, f32>,
}

struct LayersMut<'a> {
    hidden_weights: ArrayViewMut2<'a, f32>,
    hidden_biases: ArrayViewMut1<'a, f32>,
    output_weights: ArrayViewMut2<'a, f32>,
    output_biases: ArrayViewMut1<'a, f32>,
}

impl Network {
    /// How many parameters it has.
    pub fn parameters(self) -> usize {
        let [first, second, third, fourth] = self.extents();
        first + second + third + fourth
    }

    fn extents(self) -> [usize; 4] {
        [self.inputs * self.hidden, self.hidden, self.hidden * self.outputs, self.outputs]
    }

    /// Parameters to start from: weights of He's spread, biases of zero.
    pub fn start(self, random: &mut Random) -> Vec<f32> {
        let [hidden_weights, hidden_biases, output_weights, output_biases] = self.extents();
        let spread = |inputs: usize| (6.0 / inputs as f32).sqrt();
        let mut parameters = Vec::with_capacity(self.parameters());
        parameters.extend((0..hidden_weights).map(|_| random.symmetric() * spread(self.inputs)));
        parameters.extend((0..hidden_biases).map(|_| 0.0));
        parameters.extend((0..output_weights).map(|_| random.symmetric() * spread(self.hidden)));
        parameters.extend((0..output_biases).map(|_| 0.0));
        parameters
    }

    fn layers(self, parameters: &[f32]) -> Result<Layers<'_>, ShapeError> {
        let [first, second, third, _] = self.extents();
        // One check of the whole length: the parts below then have the lengths that their shapes want.
        let all = ArrayView1::from_shape(self.parameters(), parameters)?;
        let (hidden_weights, all) = all.split_at(Axis(0), first);
        let (hidden_biases, all) = all.split_at(Axis(0), second);
        let (output_weights, output_biases) = all.split_at(Axis(0), third);
        Ok(Layers {
            hidden_weights: hidden_weights.into_shape_with_order((self.inputs, self.hidden))?,
            hidden_biases,
            output_weights: output_weights.into_shape_with_order((self.hidden, self.outputs))?,
            output_biases,
        })
    }

    fn layers_mut(self, parameters: &mut [f32]) -> Result<LayersMut<'_>, ShapeError> {
        let [first, second, third, _] = self.extents();
        let all = ArrayViewMut1::from_shape(self.parameters(), parameters)?;
        let (hidden_weights, all) = all.split_at(Axis(0), first);
        let (hidden_biases, all) = all.split_at(Axis(0), second);
        let (output_weights, output_biases) = all.split_at(Axis(0), third);
        Ok(LayersMut {
            hidden_weights: hidden_weights.into_shape_with_order((self.inputs, self.hidden))?,
            hidden_biases,
            output_weights: output_weights.into_shape_with_order((self.hidden, self.outputs))?,
            output_biases,
        })
    }

    /// The gradient of the cross entropy over these images. Fails where the parameters or the images do not have
    /// the network's extents.
    pub fn gradient(
        self,
        parameters: &[f32],
        images: ArrayView2<'_, f32>,
        labels: &[u8],
    ) -> Result<Gradient, ShapeError> {
        let layers = self.layers(parameters)?;
        let labels = ArrayView1::from_shape(images.nrows(), labels)?;
        let (hidden, mut output) = layers.forward(images)?;

        // Softmax; then, in place, the gradient with respect to the logits: probability minus one for the label.
        let mut loss = 0.0;
        for (mut row, label) in output.rows_mut().into_iter().zip(labels) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.mapv_inplace(|logit| (logit - largest).exp());
            let sum = row.sum();
            row /= sum;
            if let Some(probability) = row.get_mut(usize::from(*label)) {
                loss -= probability.max(f32::MIN_POSITIVE).ln();
                *probability -= 1.0;
            }
        }

        let mut sum = vec![0.0; self.parameters()];
        let mut gradient = self.layers_mut(&mut sum)?;
        general_mat_mul(1.0, &hidden.t(), &output, 0.0, &mut gradient.output_weights);
        gradient.output_biases.assign(&output.sum_axis(Axis(0)));

        let mut back = output.dot(&layers.output_weights.t());
        // The rectifier passes nothing back where it passed nothing on.
        Zip::from(&mut back).and(&hidden).for_each(|back, hidden| {
            if *hidden <= 0.0 {
                *back = 0.0;
            }
        });
        general_mat_mul(1.0, &images.t(), &back, 0.0, &mut gradient.hidden_weights);
        gradient.hidden_biases.assign(&back.sum_axis(Axis(0)));
        Ok(Gradient { sum, loss })
    }

    /// How many of the images it names as their labels do.
    pub fn correct(
        self,
        parameters: &[f32],
        images: ArrayView2<'_, f32>,
        labels: &[u8],
    ) -> Result<usize, ShapeError> {
        let (_, output) = self.layers(parameters)?.forward(images)?;
        let right = output.rows().into_iter().zip(labels).filter(|(row, label)| {
            let best = row.iter().enumerate().max_by(|left, right| left.1.total_cmp(right.1));
            best.is_some_and(|(at, _)| at == usize::from(**label))
        });
        Ok(right.count())
    }
}

impl Layers<'_> {
    /// What the hidden units pass on, and the logits.
    fn forward(&self, images: ArrayView2<'_, f32>) -> Result<(Array2<f32>, Array2<f32>), ShapeError> {
        if images.ncols() != self.hidden_weights.nrows() {
            return Err(ShapeError::from_kind(ndarray::ErrorKind::IncompatibleShape));
        }
        let mut hidden = images.dot(&self.hidden_weights);
        hidden += &self.hidden_biases;
        hidden.mapv_inplace(|value| value.max(0.0));
        let mut output = hidden.dot(&self.output_weights);
        output += &self.output_biases;
        Ok((hidden, output))
    }
}

/// Adam: steps that follow the gradient's running mean, scaled by its running size.
#[derive(Clone, Debug)]
pub struct Adam {
    rate: f32,
    steps: i32,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Adam {
    const MEAN_KEPT: f32 = 0.9;
    const SQUARE_KEPT: f32 = 0.999;
    const SMALLEST: f32 = 1e-8;

    /// For so many parameters.
    pub fn new(parameters: usize, rate: f32) -> Self {
        Self { rate, steps: 0, mean: vec![0.0; parameters], square: vec![0.0; parameters] }
    }

    /// One step down the gradient.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32]) {
        self.steps = self.steps.saturating_add(1);
        let rate = self.rate * (1.0 - Self::SQUARE_KEPT.powi(self.steps)).sqrt()
            / (1.0 - Self::MEAN_KEPT.powi(self.steps));
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((parameter, slope), (mean, square)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *mean += (slope - *mean) * (1.0 - Self::MEAN_KEPT);
            *square += (slope * slope - *square) * (1.0 - Self::SQUARE_KEPT);
            *parameter -= rate * *mean / (square.sqrt() + Self::SMALLEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Network = Network { inputs: 5, hidden: 7, outputs: 3 };

    fn images(rows: usize, random: &mut Random) -> (Array2<f32>, Vec<u8>) {
        let pixels = Array2::from_shape_simple_fn((rows, SMALL.inputs), || random.symmetric());
        (pixels, (0..rows).map(|row| (row % SMALL.outputs) as u8).collect())
    }

    #[test]
    fn the_gradient_agrees_with_finite_differences() {
        const STEP: f32 = 1e-2;
        let mut random = Random::new(3);
        let parameters = SMALL.start(&mut random);
        let (pixels, labels) = images(6, &mut random);
        let gradient = SMALL.gradient(&parameters, pixels.view(), &labels).unwrap();
        assert_eq!(gradient.sum.len(), SMALL.parameters());
        let loss = |at: usize, by: f32| {
            let mut moved = parameters.clone();
            moved[at] += by;
            SMALL.gradient(&moved, pixels.view(), &labels).unwrap().loss
        };
        for (at, slope) in gradient.sum.iter().enumerate() {
            let measured = (loss(at, STEP) - loss(at, -STEP)) / (2.0 * STEP);
            assert!(
                (slope - measured).abs() < 0.02 * (1.0 + slope.abs()),
                "{at}: {slope}, measured {measured}"
            );
        }
    }

    #[test]
    fn gradients_of_parts_add_up_to_that_of_the_whole() {
        let mut random = Random::new(4);
        let parameters = SMALL.start(&mut random);
        let (pixels, labels) = images(9, &mut random);
        let whole = SMALL.gradient(&parameters, pixels.view(), &labels).unwrap();
        let (first, second) = pixels.view().split_at(Axis(0), 4);
        let first = SMALL.gradient(&parameters, first, &labels[..4]).unwrap();
        let second = SMALL.gradient(&parameters, second, &labels[4..]).unwrap();
        assert!((whole.loss - first.loss - second.loss).abs() < 1e-4);
        for (at, slope) in whole.sum.iter().enumerate() {
            assert!((slope - first.sum[at] - second.sum[at]).abs() < 1e-4);
        }
    }

    #[test]
    fn it_learns_a_batch_by_heart() {
        let mut random = Random::new(5);
        let mut parameters = SMALL.start(&mut random);
        let (pixels, labels) = images(9, &mut random);
        let mut adam = Adam::new(parameters.len(), 0.05);
        for _ in 0..300 {
            let gradient = SMALL.gradient(&parameters, pixels.view(), &labels).unwrap();
            adam.step(&mut parameters, &gradient.sum);
        }
        assert_eq!(SMALL.correct(&parameters, pixels.view(), &labels).unwrap(), 9);
    }

    #[test]
    fn other_extents_are_errors() {
        let parameters = vec![0.0; SMALL.parameters()];
        let (pixels, labels) = images(3, &mut Random::new(6));
        assert!(SMALL.gradient(&parameters[1..], pixels.view(), &labels).is_err());
        assert!(SMALL.gradient(&parameters, pixels.view(), &labels[1..]).is_err());
        assert!(SMALL.correct(&parameters, pixels.t(), &labels).is_err());
    }
}
