//! Figures into words, JSON and pictures.

pub mod hdr;
pub mod json;
pub mod svg;
pub mod text;

/// The percentiles that tables show.
pub const TABLE_PERCENTILES: [f64; 4] = [50.0, 99.0, 99.9, 99.99];
