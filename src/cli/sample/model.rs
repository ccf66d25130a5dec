//! The model's files: description and weights, taken apart with suspicion.

use safetensors::{Dtype as Stored, SafeTensors};
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// The files inside a model's folder, and the bundled ones.
pub(crate) const DESCRIPTION: &str = "digits-flow.json";
pub(crate) const FLOW: &str = "digits-flow.safetensors";
const BUNDLED_DESCRIPTION: &[u8] = include_bytes!("../../../models/digits/digits-flow.json");
const BUNDLED_FLOW: &[u8] = include_bytes!("../../../models/digits/digits-flow.safetensors");
const BUNDLED_CLASSIFIER: &[u8] = include_bytes!("../../../models/digits/digits-classifier.safetensors");

/// What can be wrong with a model's files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    /// The container itself is damaged: truncated, a header that lies about sizes, not safetensors.
    #[error("the weights are not a whole safetensors file ({0}); fetch the file anew")]
    Container(#[from] safetensors::SafeTensorError),
    /// The description is not the JSON that it should be.
    #[error("the description is not valid ({0})")]
    Json(#[from] serde_json::Error),
    /// A size in the description makes no sense.
    #[error("description: `{field}`: wanted {wanted}, got {got}")]
    Description { field: &'static str, wanted: String, got: String },
    /// A tensor that the network needs is not there.
    #[error("weights: `{tensor}`: wanted shape {wanted:?}, and it is missing")]
    Missing { tensor: String, wanted: Vec<usize> },
    /// A tensor has another shape.
    #[error("weights: `{tensor}`: wanted shape {wanted:?}, got {got:?}")]
    Shape { tensor: String, wanted: Vec<usize>, got: Vec<usize> },
    /// A tensor is stored in a way that is not read.
    #[error("weights: `{tensor}`: wanted f32, f16 or bf16, got {got:?}")]
    Stored { tensor: String, got: Stored },
    /// A weight is NaN or infinite.
    #[error("weights: `{tensor}`: wanted finite numbers, got {got} at element {at}")]
    NotFinite { tensor: String, at: usize, got: f32 },
    /// A tensor that the network does not know: the file is of another model.
    #[error("weights: wanted none but this network's tensors, got `{tensor}`")]
    Unknown { tensor: String },
}

/// The sizes of the network; models/digits/README.md says what each is.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Description {
    pub(crate) image_size: usize,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) channels: Vec<usize>,
    pub(crate) attention: Vec<bool>,
    pub(crate) head_dim: usize,
    pub(crate) groups: usize,
    pub(crate) norm_eps: f32,
    pub(crate) time_freqs: usize,
    pub(crate) time_scale: f64,
    pub(crate) time_max_period: f64,
    pub(crate) emb_dim: usize,
    pub(crate) num_classes: usize,
    pub(crate) null_class: usize,
}

impl Description {
    /// Reads and checks it.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ModelError> {
        let d: Self = serde_json::from_slice(json)?;
        let ensure = |holds: bool, field, wanted: &str, got: &dyn std::fmt::Debug| match holds {
            true => Ok(()),
            false => Err(ModelError::Description { field, wanted: wanted.into(), got: format!("{got:?}") }),
        };
        // Far above any such model, far below what would overflow or fill the memory.
        let sizes = [
            ("image_size", d.image_size),
            ("in_channels", d.in_channels),
            ("head_dim", d.head_dim),
            ("groups", d.groups),
            ("time_freqs", d.time_freqs),
            ("emb_dim", d.emb_dim),
            ("num_classes", d.num_classes),
        ];
        for (field, size) in sizes {
            ensure((1..=1024).contains(&size), field, "1 to 1024", &size)?;
        }
        let levels = d.channels.len();
        ensure((1..=6).contains(&levels), "channels", "1 to 6 levels", &levels)?;
        ensure(d.attention.len() == levels, "attention", "one a level", &d.attention.len())?;
        let whole = d.image_size.is_multiple_of(1 << (levels - 1));
        ensure(whole, "image_size", "a size that halves at every level", &d.image_size)?;
        ensure(d.out_channels == d.in_channels, "out_channels", "as many as in_channels", &d.out_channels)?;
        for (level, &c) in d.channels.iter().enumerate() {
            let grouped = (1..=1024).contains(&c) && c.is_multiple_of(d.groups);
            ensure(grouped, "channels", "multiples of `groups` up to 1024", &d.channels)?;
            let attends = d.attention[level] || level + 1 == levels;
            let heads = !attends || c.is_multiple_of(d.head_dim);
            ensure(heads, "channels", "multiples of `head_dim` where there is attention", &d.channels)?;
        }
        let positive = |x: f64| x.is_finite() && x > 0.0;
        ensure(positive(d.norm_eps.into()), "norm_eps", "a positive number", &d.norm_eps)?;
        ensure(positive(d.time_scale), "time_scale", "a positive number", &d.time_scale)?;
        ensure(positive(d.time_max_period), "time_max_period", "a positive number", &d.time_max_period)?;
        ensure(d.null_class == d.num_classes, "null_class", "the one after the last class", &d.null_class)?;
        Ok(d)
    }

    /// The description that comes with advect.
    pub(crate) fn bundled() -> Result<Self, ModelError> {
        Self::parse(BUNDLED_DESCRIPTION)
    }

    /// What the network is told about the time: cosines, then sines, of `time_scale t w_i` with
    /// `w_i = time_max_period^(-i / time_freqs)`.
    pub(crate) fn time_embedding(&self, t: f64) -> Vec<f32> {
        let n = self.time_freqs;
        let angle = |i: usize| self.time_scale * t * self.time_max_period.powf(-(i as f64) / n as f64);
        (0..n).map(|i| angle(i).cos() as f32).chain((0..n).map(|i| angle(i).sin() as f32)).collect()
    }
}

/// Named tensors as f32, each checked when it is taken.
#[derive(Debug)]
pub(crate) struct Weights {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    taken: RefCell<BTreeSet<String>>,
}

impl Weights {
    /// Reads a safetensors file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let file = SafeTensors::deserialize(bytes)?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in file.tensors() {
            let data = tensor.data();
            let pairs = data.as_chunks().0.iter();
            let values: Vec<f32> = match tensor.dtype() {
                Stored::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                Stored::F16 => pairs.map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
                Stored::BF16 => pairs.map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
                got => return Err(ModelError::Stored { tensor: name, got }),
            };
            if let Some(at) = values.iter().position(|x| !x.is_finite()) {
                return Err(ModelError::NotFinite { tensor: name, at, got: values[at] });
            }
            tensors.insert(name, (tensor.shape().to_vec(), values));
        }
        Ok(Self { tensors, taken: RefCell::default() })
    }

    /// The weights of the flow that come with advect.
    pub(crate) fn bundled_flow() -> Result<Self, ModelError> {
        Self::parse(BUNDLED_FLOW)
    }

    /// The weights of the classifier that come with advect.
    pub(crate) fn bundled_classifier() -> Result<Self, ModelError> {
        Self::parse(BUNDLED_CLASSIFIER)
    }

    /// The tensor called `name`, which must have this shape.
    pub(crate) fn take(&self, name: &str, shape: &[usize]) -> Result<&[f32], ModelError> {
        let (tensor, wanted) = (name.to_owned(), shape.to_vec());
        let Some((got, values)) = self.tensors.get(name) else {
            return Err(ModelError::Missing { tensor, wanted });
        };
        if got != shape {
            return Err(ModelError::Shape { tensor, wanted, got: got.clone() });
        }
        self.taken.borrow_mut().insert(tensor);
        Ok(values)
    }

    /// Every tensor was taken: the file is of this network and no other.
    pub(crate) fn all_taken(&self) -> Result<(), ModelError> {
        let taken = self.taken.borrow();
        match self.tensors.keys().find(|name| !taken.contains(*name)) {
            Some(tensor) => Err(ModelError::Unknown { tensor: tensor.clone() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_files_are_whole() {
        let d = Description::bundled().unwrap();
        assert_eq!(d.channels, [16, 32, 96]);
        let w = Weights::bundled_flow().unwrap();
        assert_eq!(w.take("down.1.res.conv1.weight", &[32, 16, 3, 3]).unwrap().len(), 32 * 16 * 9);
        assert!(matches!(w.all_taken(), Err(ModelError::Unknown { .. })));
        assert!(Weights::bundled_classifier().unwrap().take("fc2.bias", &[10]).is_ok());
    }

    #[test]
    fn wrong_tensors_are_named() {
        let w = Weights::bundled_flow().unwrap();
        let e = w.take("conv_in.weight", &[16, 1, 5, 5]).unwrap_err();
        assert_eq!(e.to_string(), "weights: `conv_in.weight`: wanted shape [16, 1, 5, 5], got [16, 1, 3, 3]");
        assert!(matches!(w.take("conv_inn.weight", &[1]), Err(ModelError::Missing { .. })));
    }

    /// A safetensors file with this header and so many bytes of data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    #[test]
    fn truncated_files_are_refused_wherever_they_end() {
        let whole = BUNDLED_CLASSIFIER;
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let ends = (0..64).chain([header - 1, header, header + 1, whole.len() / 2, whole.len() - 1]);
        for end in ends {
            let e = Weights::parse(&whole[..end]).unwrap_err();
            assert!(matches!(e, ModelError::Container(_)), "cut at {end}: {e}");
        }
    }

    #[test]
    fn hostile_files_are_refused() {
        let container = [
            // A header longer than the file, than memory, than an address.
            (1u64 << 20).to_le_bytes().to_vec(),
            u64::MAX.to_le_bytes().to_vec(),
            [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(),
            file("not json", &[]),
            file("{\"x\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", &[0; 4]),
            // Data that no tensor owns, or that two own.
            file("{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", &[0; 8]),
            file("{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", &[0; 8]),
            file(
                "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\
                 \"y\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                &[0; 4],
            ),
            // Offsets that run backwards, a shape that overflows, a size that is not the shape's.
            file("{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", &[0; 4]),
            file(
                "{\"x\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,16],\"data_offsets\":[0,4]}}",
                &[0; 4],
            ),
            file("{\"x\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,4]}}", &[0; 4]),
        ];
        for bytes in container {
            let e = Weights::parse(&bytes).unwrap_err();
            assert!(matches!(e, ModelError::Container(_)), "{e}");
        }
        let one = |dtype: &str, data: &[u8]| {
            let end = data.len();
            let header =
                format!("{{\"x\":{{\"dtype\":\"{dtype}\",\"shape\":[1],\"data_offsets\":[0,{end}]}}}}");
            Weights::parse(&file(&header, data))
        };
        assert!(matches!(one("I32", &[0; 4]), Err(ModelError::Stored { .. })));
        assert!(matches!(one("F32", &f32::NAN.to_le_bytes()), Err(ModelError::NotFinite { at: 0, .. })));
        assert!(matches!(one("BF16", &[0x80, 0x7f]), Err(ModelError::NotFinite { .. })));
        assert!(one("F16", &[0, 0x3c]).unwrap().take("x", &[1]).unwrap() == [1.0]);
    }

    #[test]
    fn descriptions_that_make_no_sense_are_refused() {
        let whole: serde_json::Value = serde_json::from_slice(BUNDLED_DESCRIPTION).unwrap();
        let with = |field: &str, value: serde_json::Value| {
            let mut d = whole.clone();
            d[field] = value;
            Description::parse(d.to_string().as_bytes())
        };
        for (field, value) in [
            ("image_size", 30.into()),
            ("image_size", 0.into()),
            ("image_size", 1_000_000.into()),
            ("channels", serde_json::json!([])),
            ("channels", serde_json::json!([16, 32, 90])),
            ("channels", serde_json::json!([16, 40, 96])),
            ("attention", serde_json::json!([true])),
            ("groups", 0.into()),
            ("norm_eps", 0.into()),
            ("null_class", 3.into()),
            ("out_channels", 2.into()),
            ("time_scale", (-1).into()),
        ] {
            let e = with(field, value.clone()).unwrap_err();
            assert!(matches!(e, ModelError::Description { .. }), "{field} = {value}: {e}");
        }
        assert!(matches!(with("groups", "eight".into()), Err(ModelError::Json(_))));
        assert!(matches!(Description::parse(b"{"), Err(ModelError::Json(_))));
    }
}
